"""The corrector: a conditional generative model of the error of a frozen predictor, on normalised fields.

The predictor is a simulator's time step or a steady simulator. The corrector is the velocity of a flow from white noise
to the predictor's error, divided by its root mean square; `ups_jax.rollout.flow_sampler` integrates the flow.
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
    """Inputs on which the corrector's error is conditioned.

    Attributes:
        fields: Inputs and output of the predictor, normalised, as channels.
        cond: Conditions of the predictor.
    """

    fields: Float[Array, "b *s g"]
    cond: Conditions


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CorrectorWeights:
    """Weights of a trained corrector.

    The leaves may be arrays, tracers or abstract shapes, as in a train state.

    Attributes:
        params: Parameters of the network.
        scale: Root mean square of the predictor's error per channel (c,), on normalised fields.
        teacher: Parameters of a distilled corrector's teacher, which predict the mean error; None for a corrector that
            is not distilled, whose `params` predict it.
    """

    params: Any
    scale: Any
    teacher: Any = None


class Corrector(nn.Module):
    """Velocity v(x, t) = E[r - e | x] at x = (1 - t) e + t r, with noise e (t = 0) and scaled error r (t = 1).

    The velocity is v = (2 t - 1) / n^2 x + F(x / n, t, inputs) / n with n^2 = t^2 + (1 - t)^2. The first part is the
    exact velocity if r is white noise. The target of the network F is ((1 - t) r - t e) / n, which has variance 1 at
    all times. It is the negative of the target of v-prediction, whose loss differs by the factor 1 / n^2. F is zero at
    initialisation, so that one Euler step from any noise gives the error 0. The spatial mean of conserved channels is
    removed from F.

    Attributes:
        task: Task of the predictor.
        latent: Patch size and number of features.
        operator_config: Architecture, with the corrector's width and depth (`corrector_architecture`).
        diffusion: Configuration of the corrector.
        context: Number of input frames of the predictor.
        dtype: Type in which the architecture's blocks compute.
        remat: Whether the backward pass recomputes the blocks.
        matmul_precision: Precision of float32 matrix products, see `ups_jax.models.layers.apply_model`.

    References:
        Karras et al. 2022 (preconditioning); Salimans & Ho 2022 (v-prediction).
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
        self, x: Float[Array, "b *s c"], time: Float[Array, " b"], inputs: CorrectorInputs
    ) -> Float[Array, "b *s c"]:
        t = time.reshape(-1, *(1,) * (x.ndim - 1))
        norm = jnp.sqrt(jnp.square(t) + jnp.square(1 - t))
        patch = patch_shape(self.task.shape, self.latent.patch_size)
        patches = patchify(jnp.concatenate([x / norm, inputs.fields], axis=-1), patch)
        features = PatchFeatures(self.task, self.latent, name="features")(patches)
        condition = ConditionEmbedding(self.task, name="condition")(inputs.cond)
        embedding = jnp.concatenate([condition, NoiseEmbedding(name="noise")(time)], axis=-1)
        architecture, width = build_architecture(self.operator_config, self.task.periodic, self.dtype, self.remat)
        tokens = jnp.concatenate([patches, features], axis=-1)
        hidden = architecture(Dense(width, name="entrance")(tokens), embedding)
        field_exit = FieldExit(_with_unit_statistics(self.task), self.latent, name="field_exit")
        return (2 * t - 1) / jnp.square(norm) * x + unpatchify(field_exit(hidden, patches), patch) / norm


def velocity(
    model: Corrector, params: Any, x: Float[Array, "b *s c"], time: Float[Array, " b"], inputs: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """Return the corrector's velocity at the state `x` of the flow.

    Args:
        model: Corrector.
        params: Parameters of the corrector.
        x: State of the flow, in units of the predictor's root mean square error.
        time: Time of the flow for each row, 0 for noise and 1 for data.
        inputs: Inputs and conditions of the corrector.
    """
    return cast(Array, apply_model(model, params, x, time, inputs))


def step_inputs(
    task: Task, window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
) -> CorrectorInputs:
    """Return the corrector's inputs for a time step: its input frames, newest first, and the predicted change.

    Args:
        task: Task of the predictor.
        window: Input frames of the step, normalised.
        pred: Predicted frame, normalised; its change is divided by the standard deviation of one-step changes.
        cond: Conditions of the step.
    """
    frames = [window[:, -1 - back] for back in range(window.shape[1])]
    scale = [change / std for change, std in zip(task.statistics.delta_std, task.statistics.std, strict=True)]
    change = (pred - frames[0]) / jnp.asarray(scale, jnp.float32).reshape((1,) * (pred.ndim - 1) + (-1,))
    return CorrectorInputs(fields=jnp.concatenate([*frames, change], axis=-1), cond=cond)


def solution_inputs(inputs: Float[Array, "b *s i"], pred: Float[Array, "b *s c"], cond: Conditions) -> CorrectorInputs:
    """Return the corrector's inputs for a steady solution: the solver's input fields and the predicted solution.

    Args:
        inputs: Input fields of the steady task, normalised.
        pred: Predicted solution, normalised.
        cond: Conditions of the solution.
    """
    return CorrectorInputs(fields=jnp.concatenate([inputs, pred], axis=-1), cond=cond)


def corrector_architecture(config: OperatorConfig, diffusion: DiffusionConfig) -> OperatorConfig:
    """Return the operator's architecture with the corrector's width and depth.

    Args:
        config: Architecture of the operator.
        diffusion: Width and depth of the corrector. Without a width, the operator's is used; without a depth, half of
            the operator's.
    """

    def depth(operator_depth: int) -> int:
        return max(1, operator_depth // 2) if diffusion.depth is None else diffusion.depth

    def width(operator_width: int) -> int:
        return operator_width if diffusion.hidden_dim is None else diffusion.hidden_dim

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


def _with_unit_statistics(task: Task) -> Task:
    """Return the task with mean 0 and all standard deviations 1."""
    channels = len(task.channels)
    ones = (1.0,) * channels
    return replace(task, statistics=Statistics(mean=(0.0,) * channels, std=ones, delta_std=ones))
