"""Best-of-n rollouts: at each step, a corrector samples several candidates for the next frame, and a rule selects one.

The rule `chosen` takes the candidate with the best physics score. For comparison, `one`, `random` and `mean` ignore
the score, and `oracle`, the candidate closest to the truth, is the best possible choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ups_jax.config import TaskConfig
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError
from ups_jax.core.task import Task
from ups_jax.evaluation.evaluate import TrajectoryArrays, rows_per_chunk
from ups_jax.inference.inputs import make_conditions
from ups_jax.metrics.aggregate import Table, concatenate_tables, fixed_size_chunks, rollout_section, score_rows
from ups_jax.models import Conditions, Simulator, denormalize, normalize, step
from ups_jax.models.corrector import Corrector, CorrectorWeights, step_inputs
from ups_jax.rollout.flow_sampler import Sampler
from ups_jax.simulate.equations import EQUATIONS, trapezoidal_residual
from ups_jax.simulate.presets import PRESETS, Preset

# (frame, candidate for the next frame, conditions) -> score of each sample; lower is better. Physical units.
ScoreFunction = Callable[[Float[Array, "b *s c"], Float[Array, "b *s c"], Conditions], Float[Array, " b"]]
# (key, scores (n, b) of the candidates, candidates (n, b, ...), true frame) -> the next frame of the rollout.
SelectionRule = Callable[[Key[Array, ""], Array, Array, Array], Array]


def candidate_score(task_cfg: TaskConfig, task: Task) -> tuple[str, ScoreFunction]:
    """Return the name of the score that ranks the candidates for a task's next frame, and its function.

    The score of a built-in periodic task is the residual of its equation. For any other task, it is the drift of the
    spatial means of the conserved channels.

    Args:
        task_cfg: The task's entry in `data.tasks`.
        task: The task on the grid of the data.

    Raises:
        ConfigError: The task has neither a built-in equation nor conserved channels.
    """
    has_equation = task_cfg.path is None and task_cfg.name in EQUATIONS and all(task.periodic)
    if has_equation:
        return "equation residual", _residual_score(task_cfg, task)
    if task.conserved:
        return "drift of conserved channels", _drift_score(task)
    raise ConfigError(
        f"task {task.name} has neither a built-in equation nor conserved channels to score candidates with; declare "
        f"conserved channels in `data.tasks.{task.name}.conserved`, or set `evaluation.candidates: 0`"
    )


def no_candidates_reason(steady: bool, objective: str | None) -> str | None:
    """Return why a corrector cannot sample several candidates per step, or None if it can.

    Args:
        steady: Whether the task is steady.
        objective: The `diffusion.objective` of the corrector; None if no corrector is available for the data.
    """
    if steady:
        return "a steady task has no time steps"
    if objective is None:
        return (
            f"no corrector is available for this data; train one with `{command('train')} --stage diffusion_residual`"
        )
    if objective == "regression":
        return "a corrector with `diffusion.objective: regression` is deterministic"
    return None


def evaluate_best_of_n(
    model: Simulator,
    params: Any,
    corrector: Corrector,
    weights: CorrectorWeights,
    sampler: Sampler,
    score: ScoreFunction,
    trajectories: TrajectoryArrays,
    *,
    candidates: int,
    batch_size: int,
    context: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Return the metrics of best-of-n rollouts with each rule in `SELECTION_RULES`.

    Args:
        params: Parameters of the simulator.
        weights: Parameters of the corrector.
        candidates: Number of candidates per step.
        batch_size: Number of trajectories that are rolled out at once.
        context: Number of frames that the model takes as input.
        seed: Seed of the candidates.

    Returns:
        By name `candidates_<rule>`, the `rollout` section and the seconds per trajectory and step.
    """
    fields, task = trajectories.fields, model.task
    steps = fields.shape[1] - context
    batch_size = rows_per_chunk(fields, batch_size, copies=candidates)

    def evaluate_rule(choose: SelectionRule) -> dict[str, Any]:
        predict = jax.jit(lambda *args: best_of_n_rollout(model, corrector, sampler, score, choose, candidates, *args))
        tables: list[Table] = []
        for rows, real_rows in fixed_size_chunks(fields.shape[0], batch_size):
            chunk = fields[rows]
            truth = chunk[:, context:]
            cond = make_conditions(task, trajectories.cond[rows], trajectories.cond_mask[rows])
            start = jnp.asarray(chunk[:, :context])
            arguments = (params, weights, start, jnp.asarray(truth), cond, jax.random.key(seed))
            tables.append(score_rows(np.asarray(predict(*arguments)), truth, task, real_rows))
        # Timed with the last chunk, whose shape is already compiled.
        begin = time.perf_counter()
        jax.block_until_ready(predict(*arguments))
        seconds = (time.perf_counter() - begin) / (steps * len(rows))
        return {"rollout": rollout_section(concatenate_tables(tables), task.dt), "seconds_per_rollout_step": seconds}

    return {f"candidates_{name}": evaluate_rule(choose) for name, choose in SELECTION_RULES.items()}


def best_of_n_rollout(
    model: Simulator,
    corrector: Corrector,
    sampler: Sampler,
    score: ScoreFunction,
    choose: SelectionRule,
    candidates: int,
    params: Any,
    weights: CorrectorWeights,
    fields: Float[Array, "b k *s c"],
    truth: Float[Array, "b t *s c"],
    cond: Conditions,
    key: Key[Array, ""],
) -> Float[Array, "b t *s c"]:
    """Return the rollout from the context `fields` in which the rule `choose` selects every frame. Pure and jittable.

    Args:
        choose: Rule that selects one of the candidates.
        candidates: Number of candidates per step.
        params: Parameters of the simulator.
        weights: Parameters of the corrector.
        fields: Context frames in physical units.
        truth: True frames after the context, which only the rule `oracle` uses.
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


def _take_candidates(indices: Array, candidates: Array) -> Array:
    """Return the candidate `candidates[indices[i], i]` of each sample i: (b,) and (n, b, ...) -> (b, ...)."""
    return jnp.take_along_axis(candidates, indices.reshape(1, -1, *(1,) * (candidates.ndim - 2)), axis=0)[0]


def _choose_random(key: Key[Array, ""], scores: Array, candidates: Array, truth: Array) -> Array:
    """Return a random candidate for each sample."""
    return _take_candidates(jax.random.randint(key, candidates.shape[1:2], 0, len(candidates)), candidates)


def _choose_closest(key: Key[Array, ""], scores: Array, candidates: Array, truth: Array) -> Array:
    """Return the candidate that is closest to the truth for each sample."""
    errors = jnp.square(candidates - truth[None]).mean(tuple(range(2, candidates.ndim)))
    return _take_candidates(jnp.argmin(errors, axis=0), candidates)


SELECTION_RULES: Mapping[str, SelectionRule] = {
    "one": lambda key, scores, candidates, truth: candidates[0],
    "random": _choose_random,
    "mean": lambda key, scores, candidates, truth: candidates.mean(0),
    "chosen": lambda key, scores, candidates, truth: _take_candidates(jnp.argmin(scores, axis=0), candidates),
    "oracle": _choose_closest,
}


def _drift_score(task: Task) -> ScoreFunction:
    """Return a score function: the change of the conserved channels' means, in standard deviations."""
    channels, scale = list(task.conserved), np.asarray(task.statistics.scale, np.float32)[None]

    def drift(before: Array, after: Array, cond: Conditions) -> Array:
        change = (after - before).mean(tuple(range(1, after.ndim - 1))) / scale
        return jnp.sqrt(jnp.mean(jnp.square(change[:, channels]), -1))

    return drift


def _residual_score(task_cfg: TaskConfig, task: Task) -> ScoreFunction:
    """Return a score function: the residual of the built-in equation of a task."""
    equation, preset = EQUATIONS[task_cfg.name], PRESETS[task_cfg.name][task_cfg.preset]
    if not isinstance(preset, Preset):
        raise TypeError(f"task {task_cfg.name} has a scalar equation, but its preset is a {type(preset).__name__}")
    constant = preset.low
    extent = tuple(points * step for points, step in zip(task.shape, task.spacing, strict=True))

    def equation_residual(before: Array, after: Array, cond: Conditions) -> Array:
        value = cond.coefficients[:, 0] if task.coefficients else jnp.full(len(after), constant, jnp.float32)
        return trapezoidal_residual(equation, before[..., 0], after[..., 0], task.dt, value, extent)

    return equation_residual
