"""Best-of-n rollouts: at each step, a corrector samples several candidates, and a physics score selects one.

The baselines need no score: the first candidate, a random one, and the mean. The upper bound is the candidate closest
to the truth.
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
    from ups_jax.evaluation.evaluate import TrajectoryArrays

# (frame, candidate for the next frame, conditions) -> score of each sample; lower is better. Physical units.
Score = Callable[[Float[Array, "b *s c"], Float[Array, "b *s c"], Conditions], Float[Array, " b"]]
# (key, scores (n, b) of the candidates, candidates (n, b, ...), true frame) -> the next frame of the rollout.
Choice = Callable[[Key[Array, ""], Array, Array, Array], Array]


def candidate_score(task_cfg: TaskConfig, task: Task) -> tuple[str, Score]:
    """Return the score of a task's candidates, with its name.

    The score of a built-in periodic task is the residual of its equation. Otherwise it is the drift of the spatial
    means of the channels that are declared as conserved.

    Args:
        task_cfg: The task's entry in `data.tasks`.
        task: The task on the grid of the data.

    Raises:
        ConfigError: The equation is not available and no channel is conserved.
    """
    has_equation = task_cfg.path is None and task_cfg.name in EQUATIONS and all(task.periodic)
    if has_equation:
        return "equation residual", _equation_score(task_cfg, task)
    if task.conserved:
        return "drift of conserved channels", _conserved_score(task)
    raise ConfigError(
        f"evaluation.candidates: task {task.name} has neither a built-in equation nor conserved channels to score "
        "candidates with; declare data.tasks.0.conserved, or set evaluation.candidates to 0"
    )


def no_candidates_reason(steady: bool, objective: str | None) -> str | None:
    """Return the reason why no candidates can be sampled, or None if they can.

    Args:
        steady: Whether the task is steady.
        objective: The `diffusion.objective` of the corrector; None if there is no corrector for this data.
    """
    if steady:
        return "a steady task has no time steps"
    if objective is None:
        return (
            f"no corrector is available for this data; train one with `{command('train')} --stage diffusion_residual`"
        )
    if objective == "regression":
        return "a corrector with diffusion.objective=regression is deterministic"
    return None


def candidate_variants(
    model: Simulator,
    params: Any,
    corrector: Corrector,
    weights: CorrectorWeights,
    sampler: Sampler,
    score: Score,
    trajectories: TrajectoryArrays,
    *,
    candidates: int,
    batch_size: int,
    context: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the `rollout` section of every selection rule in `CHOICES` as the variant `candidates_<rule>`.

    Args:
        model: The simulator.
        params: Its parameters.
        corrector: The corrector that samples candidates.
        weights: Its parameters.
        sampler: Its sampler.
        score: Score of a candidate.
        trajectories: The trajectories of a split.
        candidates: Number of candidates per step.
        batch_size: Number of trajectories per chunk.
        context: Number of frames that the model takes as input.
        seed: Seed of the candidates.
    """
    fields, task = trajectories.fields, model.task
    steps = fields.shape[1] - context

    def sections(choose: Choice) -> dict[str, Any]:
        predict = jax.jit(lambda *args: best_of_n_rollout(model, corrector, sampler, score, choose, candidates, *args))
        tables: list[Table] = []
        for rows, real_rows in fixed_size_chunks(len(fields), batch_size):
            truth = fields[rows, context:]
            cond = make_conditions(task, trajectories.cond[rows], trajectories.cond_mask[rows])
            start = jnp.asarray(fields[rows, :context])
            arguments = (params, weights, start, jnp.asarray(truth), cond, jax.random.key(seed))
            tables.append(score_rows(np.asarray(predict(*arguments)), truth, task, real_rows))
        # Timed with the last chunk, whose shape is already compiled.
        begin = time.perf_counter()
        jax.block_until_ready(predict(*arguments))
        seconds = (time.perf_counter() - begin) / (steps * len(rows))
        return {"rollout": rollout_section(concatenate_tables(tables), task.dt), "seconds_per_rollout_step": seconds}

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
    """Return the frames after the context `fields`, each selected among corrected predictions. Pure and jittable.

    Args:
        model: The simulator.
        corrector: The corrector that samples candidates.
        sampler: Its sampler.
        score: Score of a candidate.
        choose: Selection rule, one of `CHOICES`.
        candidates: Number of candidates per step.
        params: Parameters of the simulator.
        weights: Parameters of the corrector.
        fields: Context frames in physical units.
        truth: True frames, which only the rule `oracle` uses.
        cond: Conditions of the batch.
        key: Random key of the candidates.
    """
    statistics = model.task.statistics

    def one_step(window: Array, index_and_target: tuple[Array, Array]) -> tuple[Array, Array]:
        index, target = index_and_target
        step_key = jax.random.fold_in(key, index)
        pred = step(model, params, window, cond)
        inputs = step_inputs(model.task, window, pred, cond)
        frames = pred[None] + jax.vmap(lambda k: sampler(corrector, weights, k, inputs))(
            jax.random.split(step_key, candidates)
        )
        current = denormalize(window[:, -1], statistics)
        scores = jax.vmap(lambda frame: score(current, denormalize(frame, statistics), cond))(frames)
        frame = choose(jax.random.fold_in(step_key, candidates), scores, frames, target)
        return jnp.concatenate([window[:, 1:], frame[:, None]], axis=1), frame

    targets = jnp.moveaxis(normalize(truth, statistics), 1, 0)
    _, frames = jax.lax.scan(one_step, normalize(fields, statistics), (jnp.arange(len(targets)), targets))
    return denormalize(jnp.moveaxis(frames, 0, 1), statistics)


def _select(indices: Array, frames: Array) -> Array:
    """Return for each sample the candidate with its index: (b,) and (n, b, ...) -> (b, ...)."""
    return jnp.take_along_axis(frames, indices.reshape(1, -1, *(1,) * (frames.ndim - 2)), axis=0)[0]


def _random(key: Key[Array, ""], scores: Array, frames: Array, truth: Array) -> Array:
    """Return a random candidate of each sample."""
    return _select(jax.random.randint(key, frames.shape[1:2], 0, len(frames)), frames)


def _oracle(key: Key[Array, ""], scores: Array, frames: Array, truth: Array) -> Array:
    """Return the candidate of each sample that is closest to the truth."""
    errors = jnp.square(frames - truth[None]).mean(tuple(range(2, frames.ndim)))
    return _select(jnp.argmin(errors, axis=0), frames)


CHOICES: Mapping[str, Choice] = {
    "one": lambda key, scores, frames, truth: frames[0],
    "random": _random,
    "mean": lambda key, scores, frames, truth: frames.mean(0),
    "chosen": lambda key, scores, frames, truth: _select(jnp.argmin(scores, axis=0), frames),
    "oracle": _oracle,
}


def _conserved_score(task: Task) -> Score:
    """Return the score by conservation: change of the conserved channels' means in units of their deviation."""
    channels, std = list(task.conserved), np.asarray(task.statistics.std, np.float32)[None]

    def drift(before: Array, after: Array, cond: Conditions) -> Array:
        change = (after - before).mean(tuple(range(1, after.ndim - 1))) / std
        return jnp.sqrt(jnp.mean(jnp.square(change[:, channels]), -1))

    return drift


def _equation_score(task_cfg: TaskConfig, task: Task) -> Score:
    """Return the score by the residual of a built-in task's equation."""
    equation, constant = EQUATIONS[task_cfg.name], PRESETS[task_cfg.name][task_cfg.preset].low
    extent = tuple(points * step for points, step in zip(task.shape, task.spacing, strict=True))

    def equation_residual(before: Array, after: Array, cond: Conditions) -> Array:
        value = cond.coefficients[:, 0] if task.coefficients else jnp.full(len(after), constant, jnp.float32)
        return residual(equation, before[..., 0], after[..., 0], task.dt, value, extent)

    return equation_residual
