"""Sections of the configuration about the networks: codec, operator and corrector."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from ups_jax.config.schema.fields import STRICT, Count, Fraction, OpenFraction, Positive, PositiveFloat, Weight


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LatentConfig:
    """The codec, which maps fields to latent tokens and back.

    On a grid a token carries its patch of the field and `dim` learned features of the patch and its neighbours. On a
    point cloud there are `nodes` tokens; each carries `dim` learned features, averaged over points.
    """

    dim: Positive = 48
    """Learned features of a token, in addition to its patch of the field."""

    patch_size: Positive = 4
    """Points of a token's patch along each axis. An axis with n points gets n / patch_size patches, rounded up, on any
    grid; if these have more points than the axis, it is extended between walls and resampled if it is periodic."""

    nodes: Positive = 256
    """Number of tokens of a point cloud; approximate with `pooling: nodes`, whose tokens lie on a regular grid."""

    pooling: Literal["nodes", "queries"] = "nodes"
    """Tokens of a point cloud: `nodes` of a regular grid in its bounding box that aggregate the points around them, or
    learned `queries` that attend to all points (requires `operator.architecture_type: pdet_stack`)."""

    neighbours: Count = 0
    """Nearest neighbours with which each point of a cloud exchanges messages before pooling; 0 turns messages off."""

    radius: PositiveFloat | None = None
    """Largest distance of a neighbour, in the coordinates' unit, which all tasks share; `null` sets no limit."""

    rounds: Positive = 1
    """Rounds of messages between neighbours."""

    @model_validator(mode="after")
    def _check_messages(self) -> LatentConfig:
        if not self.neighbours and (self.radius is not None or self.rounds > 1):
            raise ValueError(
                "`radius` and `rounds` need messages between points; set `neighbours` as well, for example to 8"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SpectralConfig:
    """The spectral architecture: each block mixes Fourier modes and applies a local convolution."""

    hidden_dim: Positive = 48
    """Channels."""

    depth: Positive = 4
    """Number of blocks."""

    modes: Positive = 16
    """Fourier modes along each axis that a block mixes, on any grid."""

    taps: Positive = 3
    """Width of the local convolution, in tokens."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PdetConfig:
    """The PDE-Transformer architectures `pdet_unet` and `pdet_stack` of the original Universal Physics Stack."""

    hidden_dim: Positive = 96
    """Width of a token."""

    num_heads: Positive = 4
    """Attention heads; with channel-separated attention, within each group of channels."""

    group_size: Positive = 32
    """Channels of a group in channel-separated attention; a divisor of `hidden_dim`."""

    mlp_ratio: PositiveFloat = 2.0
    """Width of the hidden layer of an MLP, relative to `hidden_dim`."""

    depths: tuple[Positive, ...] = (1, 1, 1)
    """Layers at each level of `pdet_unet`; the last entry is the bottom level."""

    depth: Positive = 4
    """Layers of `pdet_stack`."""

    attention_type: Literal["standard", "channel_separated"] = "standard"
    """Attention of `pdet_stack`: `standard`, or `channel_separated` within groups of channels."""

    qk_norm: bool = False
    """RMS-normalize queries and keys of `pdet_stack`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OperatorConfig:
    """The network that advances tokens by one time step."""

    architecture_type: Literal["spectral", "pdet_unet", "pdet_stack"] = "spectral"
    """`spectral` (Fourier modes and a local convolution), or `pdet_unet` or `pdet_stack` (PDE-Transformers)."""

    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    pdet: PdetConfig = field(default_factory=PdetConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiffusionConfig:
    """The corrector: a model of the error of a trained predictor, conditioned on the predictor's input and prediction.

    The stages `diffusion_residual` and `consistency_distill` train the corrector. The predictor is a trained `operator`
    (for steady tasks, a trained `steady_prior`). The corrector has the codec of the section `latent` and the
    architecture of the section `operator`.
    """

    objective: Literal["flow", "regression"] = "flow"
    """`flow`: samples of a prediction's error, by flow matching. `regression`: its mean, by the same network."""

    hidden_dim: Positive | None = None
    """Width of the network; `null` is the operator's width."""

    depth: Positive | None = None
    """Blocks of the network, for `pdet_unet` layers at each level; `null` is half of the operator's."""

    num_steps: Positive = 6
    """Solver steps of a sample. Sampling starts at white noise; the noise level decreases geometrically and is 0 after
    the last step."""

    sampler: Literal["euler", "heun"] = "heun"
    """ODE solver of a sample: `heun` (two network evaluations in a step) or `euler` (one; the spread of samples is too
    small with few steps)."""

    min_noise: OpenFraction = 0.05
    """Noise level before the last step, relative to the root mean square of the error."""

    model_rollout_steps: Count = 1
    """Largest number of rollout steps of the operator before the step whose error the corrector learns. For each
    window, the number is drawn uniformly from 0 to this value; with 0, all inputs are true frames."""

    input_noise: Weight = 0.0
    """White noise on the frames at which these rollouts start, in standard deviations of the field."""

    fold: Fraction = 0.0
    """Share of the training trajectories (at least one) that is reserved for the corrector and its distillation. The
    predictor is not trained on it, so the corrector learns errors on data to which the predictor was not fitted. The
    trajectories are drawn with `data.split.seed`. Statistics still use the whole training split. An epoch of the
    corrector covers the reserved trajectories only: set `steps`, or more `epochs`. Works for one task on a grid."""

    fixed_noise: bool = True
    """A member of an ensemble draws the noise of its corrections once for its whole rollout; `false` draws it in every
    step."""

    expected_share: Fraction = 0.25
    """Share of a batch's rows that train `flow` to predict the expected error, which corrects a single prediction; the
    other rows train it to sample. A distilled corrector learns to sample only: without an ensemble, its prediction is
    that of its teacher."""
