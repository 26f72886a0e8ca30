"""Test-time conditioning: of several candidates for each step of a rollout the one that known physics likes best.

Always beside what needs no score: one candidate, one taken at random, their mean; and beside the best there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ups_jax.config import TaskConfig
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Task
from ups_jax.inference.inputs import make_conditions
from ups_jax.metrics.aggregate import Table, concatenate_tables, fixed_size_chunks, rollout_section, score_rows
from ups_jax.models import Conditions, Simulator, denormalize, normalize, step
from ups_jax.models.corrector import Corrector, CorrectorWeights, step_inputs
from ups_jax.rollout.flow_sampler import Sampler
from ups_jax.simulate.equations import EQUATIONS, residual
from ups_jax.simulate.presets import PRESETS

if TYPE_CHECKING:
    from ups_jax.evaluation.evaluate import Trajectories

# The frame before, a candidate for the next, both physical, and conditions -> a number a sample, less is better.
Score = Callable[[Float[Array, "b *s c"], Float[Array, "b *s c"], Conditions], Float[Array, " b"]]
# (key, scores of the candidates, candidates, truth) -> the frame that is taken.
Choice = Callable[[Key[Array, ""], Array, Array, Array], Array]


def candidate_score(settings: TaskConfig, task: Task) -> tuple[str, Score]:
    """What candidates of a task are scored by, and its name: the equation where the embedded generator knows it, or
    else how far the integrals of the declared conserved channels move; ConfigError where there is neither."""
    known = settings.path is None and settings.name in EQUATIONS and all(task.periodic)
    if known:
        return "equation residual", _equation_score(settings, task)
    if task.conserved:
        return "drift of conserved channels", _conserved_score(task)
    raise ConfigError(
        f"evaluation.candidates: nothing is known of task {task.name} that a candidate could be scored by; declare "
        "data.tasks.0.conserved, or set it to 0"
    )


def no_candidates_reason(steady: bool, objective: str | None) -> str | None:
    """Why there are no candidates to choose among, None where there are: `objective` is what the corrector of this data
    was trained for, None where there is none."""
    if steady:
        return "a steady solution has no steps to choose at"
    if objective is None:
        return f"no corrector acts on this data; train one with `{command('train')} --stage diffusion_residual`"
    if objective == "regression":
        return "a corrector with diffusion.objective: regression has one answer only"
    return None


def candidate_variants(
    model: Simulator,
    params: Any,
    corrector: Corrector,
    weights: CorrectorWeights,
    sampler: Sampler,
    score: Score,
    trajectories: Trajectories,
    *,
    candidates: int,
    batch_size: int,
    context: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The `rollout` sections of every way to choose, as `candidates_<way>`, with the warm seconds of a step."""
    fields, task = trajectories.fields, model.task
    steps = fields.shape[1] - context

    def sections(choose: Choice) -> dict[str, Any]:
        run = jax.jit(lambda *told: best_of_n_rollout(model, corrector, sampler, score, choose, candidates, *told))
        parts: list[Table] = []
        for rows, kept in fixed_size_chunks(len(fields), batch_size):
            truth = fields[rows, context:]
            cond = make_conditions(task, trajectories.cond[rows], trajectories.cond_mask[rows])
            given = jnp.asarray(fields[rows, :context])
            told = (params, weights, given, jnp.asarray(truth), cond, jax.random.key(seed))
            parts.append(score_rows(np.asarray(run(*told)), truth, task, kept))
        begin = time.perf_counter()
        jax.block_until_ready(run(*told))
        seconds = (time.perf_counter() - begin) / (steps * len(rows))
        return {"rollout": rollout_section(concatenate_tables(parts), task.dt), "seconds_per_rollout_step": seconds}

    return {f"candidates_{name}": sections(choose) for name, choose in CHOICES.items()}


def best_of_n_rollout(
    model: Simulator,
    corrector: Corrector,
    sampler: Sampler,
    score: Score,
    choose: Choice,
    candidates: int,
    params: Any,
    weights: CorrectorWeights,
    fields: Float[Array, "b k *s c"],
    truth: Float[Array, "b t *s c"],
    cond: Conditions,
    key: Key[Array, ""],
) -> Float[Array, "b t *s c"]:
    """The frames after the given ones, each chosen of so many corrected predictions; `truth` is for the best choice."""
    statistics = model.task.statistics

    def one_step(window: Array, known: tuple[Array, Array]) -> tuple[Array, Array]:
        number, target = known
        own = jax.random.fold_in(key, number)
        pred = step(model, params, window, cond)
        given = step_inputs(model.task, window, pred, cond)
        drawn = pred[None] + jax.vmap(lambda k: sampler(corrector, weights, k, given))(
            jax.random.split(own, candidates)
        )
        before = denormalize(window[:, -1], statistics)
        scores = jax.vmap(lambda frame: score(before, denormalize(frame, statistics), cond))(drawn)
        frame = choose(jax.random.fold_in(own, candidates), scores, drawn, target)
        return jnp.concatenate([window[:, 1:], frame[:, None]], axis=1), frame

    targets = jnp.moveaxis(normalize(truth, statistics), 1, 0)
    _, frames = jax.lax.scan(one_step, normalize(fields, statistics), (jnp.arange(len(targets)), targets))
    return denormalize(jnp.moveaxis(frames, 0, 1), statistics)


def _taken(numbers: Array, drawn: Array) -> Array:
    """Of each row the candidate with its number."""
    return jnp.take_along_axis(drawn, numbers.reshape(1, -1, *(1,) * (drawn.ndim - 2)), axis=0)[0]


def _oracle(key: Key[Array, ""], scores: Array, drawn: Array, truth: Array) -> Array:
    errors = jnp.square(drawn - truth[None]).mean(tuple(range(2, drawn.ndim)))
    return _taken(jnp.argmin(errors, axis=0), drawn)


CHOICES: Mapping[str, Choice] = {
    "one": lambda key, scores, drawn, truth: drawn[0],
    "random": lambda key, scores, drawn, truth: _taken(jax.random.randint(key, drawn.shape[1:2], 0, len(drawn)), drawn),
    "mean": lambda key, scores, drawn, truth: drawn.mean(0),
    "chosen": lambda key, scores, drawn, truth: _taken(jnp.argmin(scores, axis=0), drawn),
    "oracle": _oracle,
}


def _conserved_score(task: Task) -> Score:
    channels, std = list(task.conserved), np.asarray(task.statistics.std, np.float32)[None]

    def drift(before: Array, after: Array, cond: Conditions) -> Array:
        moved = (after - before).mean(tuple(range(1, after.ndim - 1))) / std
        return jnp.sqrt(jnp.mean(jnp.square(moved[:, channels]), -1))

    return drift


def _equation_score(settings: TaskConfig, task: Task) -> Score:
    equation, constant = EQUATIONS[settings.name], PRESETS[settings.name][settings.preset].low
    extent = tuple(points * step for points, step in zip(task.shape, task.spacing, strict=True))

    def left(before: Array, after: Array, cond: Conditions) -> Array:
        value = cond.coefficients[:, 0] if task.coefficients else jnp.full(len(after), constant, jnp.float32)
        return residual(equation, before[..., 0], after[..., 0], task.dt, value, extent)

    return left
