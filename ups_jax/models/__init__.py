"""Neural simulators as flax.linen modules: codec, latent operator and its cores. No optimizer, no IO."""

from ups_jax.models.conditioning import Conditions, Geometry, LatentState
from ups_jax.models.layers import denormalize, normalize, normalize_inputs
from ups_jax.models.points.simulator import PointSimulator
from ups_jax.models.simulator import Simulator, decode, encode, next_field, operate, steady_field, step
from ups_jax.models.steady import SteadySimulator
