"""Neural simulators as flax.linen modules, and the pure functions that apply them. No optimizer, no I/O."""

from ups_jax.models.batch import Batch, as_jax_arrays, first_row, with_draws
from ups_jax.models.conditioning import Conditions, Geometry, LatentState, conditions_of
from ups_jax.models.layers import denormalize, normalize, normalize_inputs
from ups_jax.models.points.simulator import PointSimulator
from ups_jax.models.simulator import Simulator, SteadySimulator, decode, encode, next_field, operate, steady_field, step
