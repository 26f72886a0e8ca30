"""The corrector: a conditional generative model of a frozen predictor's error on normalised fields.

The predictor is a simulator's time step or a steady simulator. Its error is divided by the error's root mean square.
The corrector is the velocity of a flow from white noise to this scaled error; `ups_jax.rollout.flow_sampler` integrates
the flow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ups_jax.config import DiffusionConfig, LatentConfig, OperatorConfig
from ups_jax.core.task import Statistics, Task
from ups_jax.models.codec import PatchFeatures
from ups_jax.models.conditioning import ConditionEmbedding, Conditions, NoiseEmbedding
from ups_jax.models.layers import Dense, apply_model
from ups_jax.models.operator import FieldExit, build_architecture
from ups_jax.models.patches import task_patches


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CorrectorInputs:
    """Inputs of the corrector besides the state and the time of its flow.

    Attributes:
        fields: Inputs and output of the predictor, normalised, concatenated on the channel axis.
    """

    fields: Float[Array, "b *s g"]
    cond: Conditions


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class CorrectorWeights:
    """Weights of a trained corrector; the leaves may be arrays, tracers or abstract shapes.

    Attributes:
        params: Parameters of the network.
        scale: Root mean square of the predictor's error per channel (c,), on normalised fields.
        teacher: For a distilled corrector, its teacher's parameters, which then predict the mean error. None for any
            other corrector, for which `params` predict the mean error.
    """

    params: Any
    scale: Any
    teacher: Any = None


class Corrector(nn.Module):
    """Velocity v(x, t) = E[r - e | x] of the flow x = (1 - t) e + t r from noise e (t = 0) to scaled error r (t = 1).

    The velocity is v = (2 t - 1) / n^2 x + F(x / n, t, inputs) / n with the network F and n^2 = t^2 + (1 - t)^2. The
    first term is the exact velocity if r is white noise. The training target of F is ((1 - t) r - t e) / n, the
    negative of the target of v-prediction; it has variance 1 at all times, and their losses differ by the factor
    1 / n^2. F is zero at initialisation, so that one Euler step from any noise gives the error 0. F has no spatial mean
    in conserved channels.

    Attributes:
        latent: Patch size and number of features.
        operator_config: Architecture, with the corrector's width and depth (`corrector_architecture`).
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
        grid = task_patches(self.task, self.latent)
        patches = grid.resample(grid.patchify(jnp.concatenate([x / norm, inputs.fields], axis=-1)))
        features = PatchFeatures(self.task, self.latent, name="features")(patches)
        condition = ConditionEmbedding(self.task, name="condition")(inputs.cond)
        embedding = jnp.concatenate([condition, NoiseEmbedding(name="noise")(time)], axis=-1)
        architecture, width = build_architecture(self.operator_config, self.task.periodic, self.dtype, self.remat)
        tokens = jnp.concatenate([patches, features], axis=-1)
        hidden = architecture(Dense(width, name="entrance")(tokens), embedding)
        field_exit = FieldExit(_with_unit_statistics(self.task), self.latent, name="field_exit")
        return (2 * t - 1) / jnp.square(norm) * x + grid.unpatchify(field_exit(hidden, patches)) / norm


def velocity(
    model: Corrector, params: PyTree, x: Float[Array, "b *s c"], time: Float[Array, " b"], inputs: CorrectorInputs
) -> Float[Array, "b *s c"]:
    """Return the corrector's velocity dx/dt at the state `x` of the flow.

    Args:
        x: State of the flow, in units of the root mean square of the predictor's error.
        time: Time of the flow for each row, 0 for noise and 1 for data.
    """
    return cast(Array, apply_model(model, params, x, time, inputs))


def step_inputs(
    task: Task, window: Float[Array, "b k *s c"], pred: Float[Array, "b *s c"], cond: Conditions
) -> CorrectorInputs:
    """Return the corrector's inputs for a time step: the step's input frames, newest first, and the predicted change.

    The predicted change is `pred` minus the newest input frame, divided by the standard deviation of one-step changes.

    Args:
        window: Input frames of the step, normalised, oldest first.
        pred: Predicted frame, normalised.
    """
    frames = [window[:, -1 - back] for back in range(window.shape[1])]
    scale = [change / std for change, std in zip(task.statistics.delta_std, task.statistics.std, strict=True)]
    change = (pred - frames[0]) / jnp.asarray(scale, jnp.float32).reshape((1,) * (pred.ndim - 1) + (-1,))
    return CorrectorInputs(fields=jnp.concatenate([*frames, change], axis=-1), cond=cond)


def solution_inputs(inputs: Float[Array, "b *s i"], pred: Float[Array, "b *s c"], cond: Conditions) -> CorrectorInputs:
    """Return the corrector's inputs for a steady solution: the predictor's input fields and output, normalised."""
    return CorrectorInputs(fields=jnp.concatenate([inputs, pred], axis=-1), cond=cond)


def corrector_architecture(config: OperatorConfig, diffusion: DiffusionConfig) -> OperatorConfig:
    """Return the operator's architecture with the corrector's width and depth.

    Without `diffusion.hidden_dim` the width is the operator's; without `diffusion.depth` the depth is half as large.
    """

    def corrector_depth(operator_depth: int) -> int:
        return max(1, operator_depth // 2) if diffusion.depth is None else diffusion.depth

    def corrector_width(operator_width: int) -> int:
        return operator_width if diffusion.hidden_dim is None else diffusion.hidden_dim

    spectral, pdet = config.spectral, config.pdet
    return replace(
        config,
        spectral=replace(
            spectral, hidden_dim=corrector_width(spectral.hidden_dim), depth=corrector_depth(spectral.depth)
        ),
        pdet=replace(
            pdet,
            hidden_dim=corrector_width(pdet.hidden_dim),
            depth=corrector_depth(pdet.depth),
            depths=tuple(corrector_depth(layers) for layers in pdet.depths),
        ),
    )


def _with_unit_statistics(task: Task) -> Task:
    """Return the task with mean 0 and standard deviation 1, both for its fields and for their one-step changes."""
    channels = len(task.channels)
    ones = (1.0,) * channels
    return replace(task, statistics=Statistics(mean=(0.0,) * channels, std=ones, delta_std=ones))
