"""The corrector: a conditional generative model of a frozen predictor's error, on normalised fields.

It is the velocity of a flow that carries white noise to errors in units of their own rms; integrating it is
`ups_jax.rollout.flow_sampler`. A predictor is a time step of a simulator, or a steady simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ups_jax.config import DiffusionConfig, LatentConfig, OperatorConfig
from ups_jax.core.task import Statistics, Task
from ups_jax.models.codec import PatchFeatures
from ups_jax.models.conditioning import ConditionEmbedding, Conditions, NoiseEmbedding
from ups_jax.models.grid import patch_shape, patchify, unpatchify
from ups_jax.models.layers import Dense, apply_model
from ups_jax.models.operator import FieldExit, build_architecture


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CorrectorInputs:
    """What an error is conditioned on: what the predictor saw and what it said, as channels, and its conditions."""

    fields: Float[Array, "b *s g"]
    cond: Conditions


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CorrectorWeights:
    """A trained corrector: the parameters of its network, and `scale` (c,), the rms of the error by channel, in
    normalised fields. Its leaves are arrays, tracers or abstract shapes by turns, as those of a train state.

    `teacher` are the parameters of what a distilled corrector was taught by, which are asked for the expected error;
    None where the corrector's own are.
    """

    params: Any
    scale: Any
    teacher: Any = None


class Corrector(nn.Module):
    """Velocity E[r - e | x] at x = (1 - t) e + t r, of noise e at time 0 and error r at time 1, both of variance 1.

    v = (2 t - 1) / n^2 x + F(x / n, t, given) / n with n^2 = t^2 + (1 - t)^2: what is written out is the answer for
    errors that are white noise, and what is left for the network F is of variance 1 at all times (the preconditioning
    of Karras et al. 2022, at the times of a rectified flow). What F has to say is ((1 - t) r - t e) / n, minus the v of
    v-prediction (Salimans & Ho 2022): both are one network, in losses that differ by 1 / n^2. F starts at zero: then
    one step of Euler's from any noise is the error 0. Channels that are conserved have no mean in F.
    """

    task: Task
    latent: LatentConfig
    operator_config: OperatorConfig
    diffusion: DiffusionConfig = DiffusionConfig()
    context: int = 1
    dtype: Any = jnp.float32
    remat: bool = False
    matmul_precision: str = "highest"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *s c"], time: Float[Array, " b"], given: CorrectorInputs
    ) -> Float[Array, "b *s c"]:
        t = time.reshape(-1, *(1,) * (x.ndim - 1))
        norm = jnp.sqrt(jnp.square(t) + jnp.square(1 - t))
        patch = patch_shape(self.task.shape, self.latent.patch_size)
        seen = patchify(jnp.concatenate([x / norm, given.fields], axis=-1), patch)
        features = PatchFeatures(self.task, self.latent, name="features")(seen)
        condition = ConditionEmbedding(self.task, name="condition")(given.cond)
        embedding = jnp.concatenate([condition, NoiseEmbedding(name="noise")(time)], axis=-1)
        core, width = build_architecture(self.operator_config, self.task.periodic, self.dtype, self.remat)
        hidden = core(Dense(width, name="entrance")(jnp.concatenate([seen, features], axis=-1)), embedding)
        exit_ = FieldExit(_of_variance_one(self.task), self.latent, name="field_exit")
        return (2 * t - 1) / jnp.square(norm) * x + unpatchify(exit_(hidden, seen), patch) / norm


def velocity(
    model: Corrector, params: Any, x: Float[Array, "b *s c"], time: Float[Array, " b"], given: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """The corrector as a pure function of its parameters."""
    return cast(Array, apply_model(model, params, x, time, given))


def step_inputs(
    task: Task, window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
) -> CorrectorInputs:
    """Of a time step: the frames that it saw, newest first, and its change in units of one-step differences."""
    frames = [window[:, -1 - back] for back in range(window.shape[1])]
    scale = [change / std for change, std in zip(task.statistics.delta_std, task.statistics.std, strict=True)]
    change = (pred - frames[0]) / jnp.asarray(scale, jnp.float32).reshape((1,) * (pred.ndim - 1) + (-1,))
    return CorrectorInputs(fields=jnp.concatenate([*frames, change], axis=-1), cond=cond)


def solution_inputs(inputs: Float[Array, "b *s i"], pred: Float[Array, "b *s c"], cond: Conditions) -> CorrectorInputs:
    """Of a steady solution: the fields that it was solved for, and the solution."""
    return CorrectorInputs(fields=jnp.concatenate([inputs, pred], axis=-1), cond=cond)


def corrector_architecture(config: OperatorConfig, diffusion: DiffusionConfig) -> OperatorConfig:
    """The operator's core at the corrector's own width and depth; without a depth, half as deep."""

    def depth(own: int) -> int:
        return max(1, own // 2) if diffusion.depth is None else diffusion.depth

    def width(own: int) -> int:
        return own if diffusion.hidden_dim is None else diffusion.hidden_dim

    spectral, pdet = config.spectral, config.pdet
    return replace(
        config,
        spectral=replace(spectral, hidden_dim=width(spectral.hidden_dim), depth=depth(spectral.depth)),
        pdet=replace(
            pdet,
            hidden_dim=width(pdet.hidden_dim),
            depth=depth(pdet.depth),
            depths=tuple(depth(layers) for layers in pdet.depths),
        ),
    )


def _of_variance_one(task: Task) -> Task:
    channels = len(task.channels)
    ones = (1.0,) * channels
    return replace(task, statistics=Statistics(mean=(0.0,) * channels, std=ones, delta_std=ones))
