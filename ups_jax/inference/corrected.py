"""Predictions of a run with its trained corrector, or what was distilled from it: a correction at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ups_jax.core.commands import command
from ups_jax.core.errors import CheckpointError
from ups_jax.core.stage_names import STAGE_NEEDS, TEACHER
from ups_jax.inference.inputs import conditions
from ups_jax.inference.trained_model import TrainedModel
from ups_jax.models.corrector import Corrector, CorrectorWeights
from ups_jax.rollout.autoregressive import rollout
from ups_jax.rollout.correction import Correction, every
from ups_jax.rollout.flow_sampler import Sampler, corrected, corrected_solution, expected, sample, sample_distilled
from ups_jax.rollout.steady import steady_rollout
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import build_model

# The stages whose result is a corrector, how it is sampled, and the name of the rollout with it in an evaluation.
SAMPLERS: dict[str, Sampler] = {"diffusion_residual": sample, "consistency_distill": sample_distilled}
VARIANTS = {"diffusion_residual": "corrector", "consistency_distill": "distilled"}


def sampler_of(stage: str, steps: int | None) -> Sampler:
    """How a stage's corrector is sampled, in its own number of steps or in `steps`."""
    own: Any = SAMPLERS[stage]
    return own if steps is None else partial(own, steps=steps)


def member_keys(trained: Weights, members: int) -> list[Any]:
    """A key for each member, by the seed of the configuration."""
    key = jax.random.key(trained.config.seed)
    return [jax.random.fold_in(key, number) for number in range(members)]


@dataclass(frozen=True, eq=False)
class CorrectedModel:
    """The `Predictor` of a trained model with its corrector at each `steps_apart`-th step, on the model's grid; or its
    solutions, corrected.

    The expected error is taken out, which a distilled corrector's teacher says; `members` draw theirs, the same ones at
    every call. `sampler_steps` are those of the sampler, None for its default.
    """

    run: TrainedModel
    stage: str
    trained: Weights
    steps_apart: int = 1
    sampler_steps: int | None = None

    def rollout_arrays(
        self, u0: Float[np.ndarray, "b *start"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return the `steps` frames after the context `u0`; each prediction is corrected, and encoded anew. Of a
        steady task `u0` are the given fields."""
        return self._frames(self._expected, u0, steps, cond, cond_mask, jax.random.key(0))

    def members(
        self, u0: Float[np.ndarray, "b *start"], steps: int, cond: np.ndarray, cond_mask: np.ndarray, *, members: int
    ) -> Float[np.ndarray, "m b t *s c"]:
        """Return so many rollouts with sampled corrections, made one after the other."""
        keys = member_keys(self.trained, members)
        return np.stack([self._frames(self._sampled, u0, steps, cond, cond_mask, key) for key in keys])

    @property
    def random(self) -> bool:
        """Whether two of its members differ."""
        return self.trained.config.diffusion.objective != "regression"

    def reconstruct(
        self, fields: Float[np.ndarray, "b t *s c"], cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """Return decode(encode(fields)), which no corrector has a part in."""
        return self.run.reconstruct(fields, cond, cond_mask)

    @cached_property
    def model(self) -> Corrector:
        """The flax module of the corrector."""
        return cast(Corrector, build_model(self.trained.config, self.run.task, self.stage))

    @cached_property
    def _sampled(self) -> Any:
        return self._compiled(sampler_of(self.stage, self.sampler_steps))

    @cached_property
    def _expected(self) -> Any:
        return self._compiled(expected)

    def _frames(
        self, frames: Any, u0: np.ndarray, steps: int, cond: np.ndarray, cond_mask: np.ndarray, key: Any
    ) -> np.ndarray:
        given, fields = conditions(self.run.task, cond, cond_mask), jnp.asarray(u0, jnp.float32)
        return np.asarray(frames(self.run.weights, self.trained.weights, fields, given, key=key, steps=steps))

    def _compiled(self, sampler: Sampler) -> Any:
        base, model, fixed_noise = self.run.model, self.model, self.trained.config.diffusion.fixed_noise

        def frames(params: Any, weights: CorrectorWeights, fields: Any, cond: Any, *, key: Any, steps: int) -> Any:
            if base.task.kind == "steady":
                correct = partial(corrected_solution(model, weights, sampler), key)
                return steady_rollout(base, params, fields, cond, steps, correct)
            corrector = corrected(model, weights, sampler)
            correction = Correction(corrector=corrector, when=every(self.steps_apart), held=fixed_noise)
            return rollout(base, params, fields, cond, steps, correction, key)

        return jax.jit(frames, static_argnames="steps")


def correctors(path: Path) -> dict[str, Weights]:
    """The correctors that a run has and that belong to its predictor as it is, by the names of their stages."""
    run = RunDirectory(path)
    recorded = run.read()["stages"]
    trained = [name for name in SAMPLERS if run.checkpoints(name).is_dir() and recorded.get(name, {}).get("finished")]
    return {name: corrector_of(path, name) for name in trained}


def corrector_of(path: Path, stage: str) -> Weights:
    """The best checkpoint of a corrector's stage, with its teacher's parameters where it was distilled; CheckpointError
    where it was trained on other weights than the run has by now."""
    trained, record = best_weights(path, stage), RunDirectory(path).read()["stages"].get(stage, {})
    parents = {parent: best_weights(path, parent) for parent in record.get("parents", {})}
    for parent, now in parents.items():
        then = record["parents"][parent]
        if now.digest != then["digest"]:
            raise CheckpointError(
                f"{path}: {stage} was trained on step {then['step']} of {parent}, whose best checkpoint is step "
                f"{now.step} by now; delete {RunDirectory(path).checkpoints(stage)} and train it again with "
                f"`{command('train')} --stage {stage} --run-dir {path}`"
            )
    if stage != "consistency_distill":
        return trained
    if TEACHER not in parents:
        raise CheckpointError(f"{path}: run.json does not say which {TEACHER} {stage} was taught by; train it again")
    return replace(trained, weights=replace(trained.weights, teacher=parents[TEACHER].params))


def predictor_stage_of(path: Path, stage: str) -> str:
    """The stage of the predictor that a stage's result is used with: itself, where it is one."""
    run = RunDirectory(path)
    return run.main_stage() if stage in STAGE_NEEDS["transient"] else stage
