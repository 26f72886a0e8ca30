"""Predictions of a trained model with a corrector: a second network that reduces the error of each predicted frame.

The corrector is a diffusion model, a regression, or a one-step model distilled from the diffusion model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError
from ups_jax.core.stage_names import STAGE_NEEDS, TEACHER
from ups_jax.inference.inputs import make_conditions
from ups_jax.inference.trained_model import TrainedModel
from ups_jax.models import Conditions
from ups_jax.models.corrector import Corrector, CorrectorWeights
from ups_jax.rollout.autoregressive import rollout
from ups_jax.rollout.correction import Correction, every_n
from ups_jax.rollout.flow_sampler import (
    Sampler,
    mean_error,
    sample_distilled,
    sample_error,
    solution_corrector,
    step_corrector,
)
from ups_jax.rollout.steady import steady_rollout
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import build_model

# The stages that train a corrector, with its sampler and with the name of its rollout in an evaluation.
SAMPLERS: dict[str, Sampler] = {"diffusion_residual": sample_error, "consistency_distill": sample_distilled}
VARIANT_NAMES = {"diffusion_residual": "corrector", "consistency_distill": "distilled"}


def stage_sampler(stage: str, steps: int | None) -> Sampler:
    """Return the sampler of the corrector that `stage` trains.

    Args:
        steps: Number of sampler steps; None for the sampler's default.
    """
    sampler: Any = SAMPLERS[stage]
    return sampler if steps is None else partial(sampler, steps=steps)


def member_keys(corrector_weights: Weights, members: int) -> list[Key[Array, ""]]:
    """Return a random key for each ensemble member, derived from the seed of the corrector's configuration."""
    key = jax.random.key(corrector_weights.config.seed)
    return [jax.random.fold_in(key, index) for index in range(members)]


@dataclass(frozen=True, eq=False)
class CorrectedModel:
    """A trained model with a corrector of its predictions, as a `Predictor` for `ups_jax.evaluation.evaluate`.

    A single rollout applies the corrector's mean correction; a distilled corrector uses that of its teacher. Members of
    an ensemble apply sampled corrections, which are the same at every call.

    Attributes:
        trained_model: The model whose predictions are corrected, on the grid that it steps on.
        stage: The stage that trained the corrector.
        corrector_weights: The corrector's checkpoint.
        correct_every: Number of time steps from one correction to the next.
        sampler_steps: Number of sampler steps of ensemble members; None for the sampler's default.
    """

    trained_model: TrainedModel
    stage: str
    corrector_weights: Weights
    correct_every: int = 1
    sampler_steps: int | None = None

    def rollout_arrays(
        self, u0: Float[np.ndarray, "b *start"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return the corrected `steps` frames after the context `u0`, or the corrected solutions of a steady task.

        Each corrected frame is re-encoded for the next step. For a steady task `u0` contains the input fields.
        """
        return self._call_arrays(self._mean_rollout, u0, steps, cond, cond_mask, jax.random.key(0))

    def sample_members(
        self, u0: Float[np.ndarray, "b *start"], steps: int, cond: np.ndarray, cond_mask: np.ndarray, *, members: int
    ) -> Float[np.ndarray, "m b t *s c"]:
        """Return `members` rollouts with sampled corrections, computed one after the other to save memory."""
        keys = member_keys(self.corrector_weights, members)
        return np.stack([self._call_arrays(self._sampled_rollout, u0, steps, cond, cond_mask, key) for key in keys])

    @property
    def is_stochastic(self) -> bool:
        """Whether the members of an ensemble differ: not if the corrector is a regression."""
        return self.corrector_weights.config.diffusion.objective != "regression"

    def reconstruct(
        self, fields: Float[np.ndarray, "b t *s c"], cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return decode(encode(fields)), which does not involve the corrector."""
        return self.trained_model.reconstruct(fields, cond, cond_mask)

    @cached_property
    def corrector(self) -> Corrector:
        """The flax module of the corrector."""
        return cast(Corrector, build_model(self.corrector_weights.config, self.trained_model.task, self.stage))

    @cached_property
    def _sampled_rollout(self) -> Callable[..., Any]:
        """The jitted rollout with sampled corrections."""
        return self._compile_rollout(stage_sampler(self.stage, self.sampler_steps))

    @cached_property
    def _mean_rollout(self) -> Callable[..., Any]:
        """The jitted rollout with the mean correction."""
        return self._compile_rollout(mean_error)

    def _call_arrays(
        self,
        jitted_rollout: Callable[..., Any],
        u0: np.ndarray,
        steps: int,
        cond: np.ndarray,
        cond_mask: np.ndarray,
        key: Key[Array, ""],
    ) -> np.ndarray:
        """Call a jitted rollout on NumPy arrays and return its frames as a NumPy array."""
        conditions = make_conditions(self.trained_model.task, cond, cond_mask)
        params, weights = self.trained_model.weights, self.corrector_weights.weights
        fields = jnp.asarray(u0, jnp.float32)
        return np.asarray(jitted_rollout(params, weights, fields, conditions, key=key, steps=steps))

    def _compile_rollout(self, sampler: Sampler) -> Callable[..., Any]:
        """Return the jitted rollout of the model with the corrections that `sampler` returns."""
        simulator, network = self.trained_model.model, self.corrector
        fixed_noise = self.corrector_weights.config.diffusion.fixed_noise

        def corrected_frames(
            params: Any, weights: CorrectorWeights, fields: Array, cond: Conditions, *, key: Key[Array, ""], steps: int
        ) -> Array:
            if simulator.task.kind == "steady":
                correct = partial(solution_corrector(network, weights, sampler), key)
                return steady_rollout(simulator, params, fields, cond, steps, correct)
            corrector = step_corrector(network, weights, sampler)
            correction = Correction(corrector=corrector, when=every_n(self.correct_every), fixed_noise=fixed_noise)
            return rollout(simulator, params, fields, cond, steps, correction, key)

        return jax.jit(corrected_frames, static_argnames="steps")


def load_correctors(path: Path) -> dict[str, Weights]:
    """Return the best checkpoint of every finished corrector of a run, by the name of its stage.

    Raises:
        CheckpointError: A corrector was trained on an older checkpoint of a parent stage than its best one.
    """
    run = RunDirectory(path)
    records = run.read_record()["stages"]
    finished = [
        name for name in SAMPLERS if run.checkpoint_folder(name).is_dir() and records.get(name, {}).get("finished")
    ]
    return {name: load_corrector(path, name) for name in finished}


def load_corrector(path: Path, stage: str) -> Weights:
    """Return the best checkpoint of the corrector that `stage` trained, for a distilled one with the teacher's weights.

    Raises:
        CheckpointError: There is no checkpoint, or the corrector was trained on another checkpoint of a parent stage
            than the run's current best one.
    """
    weights, record = best_weights(path, stage), RunDirectory(path).read_record()["stages"].get(stage, {})
    parents = {parent: best_weights(path, parent) for parent in record.get("parents", {})}
    for parent, current in parents.items():
        trained_on = record["parents"][parent]
        if current.digest != trained_on["digest"]:
            raise CheckpointError(
                f"{path}: {stage} was trained on the checkpoint of {parent} at step {trained_on['step']}, but the best "
                f"one is now at step {current.step}; delete {RunDirectory(path).checkpoint_folder(stage)} and train "
                f"again with `{command('train')} --stage {stage} --run-dir {path}`"
            )
    if stage != "consistency_distill":
        return weights
    if TEACHER not in parents:
        raise CheckpointError(f"{path}: run.json names no {TEACHER} checkpoint for {stage}; train {stage} again")
    return replace(weights, weights=replace(weights.weights, teacher=parents[TEACHER].params))


def predictor_stage(path: Path, stage: str) -> str:
    """Return the stage whose model predicts: the run's main stage if `stage` trains a corrector, otherwise `stage`."""
    run = RunDirectory(path)
    return run.main_stage() if stage in STAGE_NEEDS["transient"] else stage
