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

from ups_jax.config import STAGE_NEEDS
from ups_jax.core.errors import CheckpointError
from ups_jax.inference.inputs import conditions
from ups_jax.inference.trained_model import SteadyRun, TrainedRun
from ups_jax.models import SteadySimulator
from ups_jax.models.corrector import Corrector, CorrectorWeights
from ups_jax.rollout.autoregressive import rollout
from ups_jax.rollout.correction import Correction, every
from ups_jax.rollout.flow_sampler import Sampler, corrected, corrected_solution, expected, sample, sample_distilled
from ups_jax.rollout.steady import solve
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.runs.directory import RunDirectory
from ups_jax.training.build import build_model
from ups_jax.training.stages.consistency_distill import TEACHER

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


@dataclass(frozen=True)
class CorrectedPredictor:
    """The `Predictor` of a run with its corrector at each `steps_apart`-th step, on the run's grid.

    `rollout` takes the expected error out, which a distilled corrector's teacher says; `members` draw theirs, the same
    ones at every call; `sampler_steps` are those of the sampler, None for its own.
    """

    run: TrainedRun
    stage: str
    trained: Weights
    steps_apart: int = 1
    sampler_steps: int | None = None

    def rollout(
        self, u0: Float[np.ndarray, "b k *s c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """The `steps` frames after the context `u0`; each prediction is corrected, and encoded anew."""
        given = conditions(self.run.task, cond, cond_mask)
        fields = jnp.asarray(u0, jnp.float32)
        return np.asarray(self._expected(self.run.weights, self.trained.weights, fields, given, steps=steps))

    def members(
        self, u0: Float[np.ndarray, "b k *s c"], steps: int, cond: np.ndarray, cond_mask: np.ndarray, *, members: int
    ) -> Float[np.ndarray, "m b t *s c"]:
        """So many rollouts with sampled corrections, made one after the other."""
        given = conditions(self.run.task, cond, cond_mask)
        fields = jnp.asarray(u0, jnp.float32)
        weights, keys = (self.run.weights, self.trained.weights), member_keys(self.trained, members)
        return np.stack([np.asarray(self._sampled(*weights, fields, given, key=key, steps=steps)) for key in keys])

    @property
    def random(self) -> bool:
        """Whether two of its rollouts differ."""
        return self.trained.config.diffusion.objective != "regression"

    def reconstruct(
        self, fields: Float[np.ndarray, "b t *s c"], cond: np.ndarray, cond_mask: np.ndarray
    ) -> Float[np.ndarray, "b t *s c"]:
        """decode(encode(fields)), which no corrector has a part in."""
        return self.run.predictor().reconstruct(fields, cond, cond_mask)

    @cached_property
    def model(self) -> Corrector:
        """The corrector itself."""
        model = cast(Corrector, build_model(self.trained.config, self.run.task, self.stage))
        return model

    @cached_property
    def _sampled(self) -> Any:
        return self._compiled(sampler_of(self.stage, self.sampler_steps))

    @cached_property
    def _expected(self) -> Any:
        return partial(self._compiled(expected), key=jax.random.key(0))

    def _compiled(self, sampler: Sampler) -> Any:
        when, held = every(self.steps_apart), self.trained.config.diffusion.held_noise

        def frames(params: Any, weights: CorrectorWeights, fields: Any, cond: Any, *, key: Any, steps: int) -> Any:
            correction = Correction(corrector=corrected(self.model, weights, sampler), when=when, held=held)
            return rollout(self.run.model, params, fields, cond, steps, correction, key)

        return jax.jit(frames, static_argnames="steps")


@dataclass(frozen=True)
class CorrectedSolver:
    """Solutions of a steady run with their expected error added, or samples of it, the same ones at every call.

    `sampler_steps` are those of the corrector's sampler, None for its own.
    """

    run: SteadyRun
    stage: str
    trained: Weights
    sampler_steps: int | None = None

    def __call__(self, inputs: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray) -> Float[np.ndarray, "b *grid c"]:
        given = conditions(self.run.task, cond, cond_mask)
        return np.asarray(self._expected(self.run.weights, self.trained.weights, jnp.asarray(inputs), given))

    def members(
        self, inputs: np.ndarray, cond: np.ndarray, cond_mask: np.ndarray, *, members: int
    ) -> Float[np.ndarray, "m b *grid c"]:
        """So many samples of the solutions."""
        given, fields = conditions(self.run.task, cond, cond_mask), jnp.asarray(inputs)
        weights = (self.run.weights, self.trained.weights)
        keys = member_keys(self.trained, members)
        return np.stack([np.asarray(self._sampled(*weights, fields, given, key=key)) for key in keys])

    @property
    def random(self) -> bool:
        """Whether two of its samples differ."""
        return self.trained.config.diffusion.objective != "regression"

    @cached_property
    def _sampled(self) -> Any:
        return self._compiled(sampler_of(self.stage, self.sampler_steps))

    @cached_property
    def _expected(self) -> Any:
        return partial(self._compiled(expected), key=jax.random.key(0))

    def _compiled(self, sampler: Sampler) -> Any:
        task, config = self.run.task, self.trained.config
        model = cast(Corrector, build_model(config, task, self.stage))
        base = cast(SteadySimulator, build_model(self.run.config, task, self.run.stage))

        def solutions(params: Any, weights: CorrectorWeights, inputs: Any, cond: Any, *, key: Any) -> Any:
            correct = partial(corrected_solution(model, weights, sampler), key)
            return solve(base, params, inputs, cond, correct)

        return jax.jit(solutions)


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
                f"scripts/train.py --stage {stage} --run-dir {path}"
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
