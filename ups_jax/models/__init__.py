"""Neural simulators as flax.linen modules: codec, latent operator and its cores. No optimizer, no IO."""

from ups_jax.models.functions import decode, encode, operate, step
from ups_jax.models.latent_state import Conditions, LatentState
from ups_jax.models.normalizer import denormalize, normalize
from ups_jax.models.simulator import Simulator

__all__ = ["Conditions", "LatentState", "Simulator", "decode", "denormalize", "encode", "normalize", "operate", "step"]
