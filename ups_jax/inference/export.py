"""A trained run as one StableHLO artifact: normaliser, encoder, operator and decoder, with the parameters in it.

A program that has jax alone loads it; the JSON beside it says what goes in and what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int

from ups_jax.core.errors import ConfigError
from ups_jax.core.files import version, write_atomically
from ups_jax.core.locks import lock_file
from ups_jax.core.task import Task
from ups_jax.inference.trained_model import SteadyRun, TrainedRun, load_task_run
from ups_jax.models import Conditions
from ups_jax.rollout.autoregressive import rollout
from ups_jax.rollout.steady import solve

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_NAME = "model.stablehlo"


def export_run(
    path: Path,
    output: Path,
    platforms: Sequence[str] = ("cpu", "cuda"),
    *,
    stage: str | None = None,
    task: str | None = None,
) -> tuple[Path, Path]:
    """Write artifact and JSON, of the run's main stage or another one, of its task or the named one; their paths.

    `output` with a suffix is the artifact, otherwise a folder for `model.stablehlo` and `model.json`. Nothing of a
    platform has to be there to export for it. CheckpointError, ConfigError or StorageError as they apply.
    """
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise ConfigError(f"platforms {', '.join(unknown) or '(none)'}; there are {', '.join(PLATFORMS)}")
    artifact = output if output.suffix else output / _NAME
    described = artifact.with_suffix(".json")
    if described == artifact:
        raise ConfigError(f"--output {output}: its JSON would be itself; give it another suffix, such as .stablehlo")
    run = load_task_run(path, task, stage=stage)
    if run.task.scattered:
        raise ConfigError(f"{path}: the task {run.task.name} is of points, and only grids are exported; use load_run")
    exported = exported_solver(run, platforms) if isinstance(run, SteadyRun) else exported_rollout(run, platforms)
    # The two belong together.
    with lock_file(artifact, "wait for it, or give another --output"):
        write_atomically(artifact, bytes(exported.serialize()))
        write_atomically(described, json.dumps(description(run, exported, artifact.name), indent=2) + "\n")
    return artifact, described


def exported_rollout(run: TrainedRun, platforms: Sequence[str]) -> export.Exported:
    """(fields, coefficients, known, count) -> frames, physical units; batch and number of steps are symbolic.

    `count` (t,) int32 lends its length alone, the number of steps: a shape is what a program can be compiled for.
    """
    task, width = run.task, len(run.task.coefficients)

    def predict(
        fields: Float[Array, "b k *s c"],
        coefficients: Float[Array, "b p"],
        known: Float[Array, "b p"],
        count: Int[Array, " t"],
    ) -> Float[Array, "b t *s c"]:
        cond = _conditions(task, fields, coefficients, known)
        return rollout(run.model, run.weights, fields, cond, count.shape[0])

    batch, steps = export.symbolic_shape("b, t")
    shape = (batch, run.model.context, *task.shape, len(task.channels))
    return _export(predict, platforms, shape, (batch, width), (batch, width), steps)


def exported_solver(run: SteadyRun, platforms: Sequence[str]) -> export.Exported:
    """(inputs, coefficients, known) -> solutions on the trained grid, physical units; the batch is symbolic."""
    task, width = run.task, len(run.task.coefficients)

    def predict(
        inputs: Float[Array, "b *s i"], coefficients: Float[Array, "b p"], known: Float[Array, "b p"]
    ) -> Float[Array, "b *s c"]:
        return solve(run.model, run.weights, inputs, _conditions(task, inputs, coefficients, known))

    (batch,) = export.symbolic_shape("b")
    return _export(predict, platforms, (batch, *task.shape, len(task.inputs)), (batch, width), (batch, width))


def description(run: TrainedRun | SteadyRun, exported: export.Exported, artifact: str) -> dict[str, Any]:
    """What a program has to know to call the artifact; plain JSON."""
    task = run.task
    steady = isinstance(run, SteadyRun)
    given = f"{'inputs' if steady else 'fields'} {_shape(exported.in_avals[0].shape)} float32, physical units"
    arguments = [
        given,
        f"coefficients {_shape(exported.in_avals[1].shape)} float32, physical units, in the order of `coefficients`",
        f"known {_shape(exported.in_avals[2].shape)} float32, 1 where a coefficient is given, 0 where its training "
        "mean is to be taken",
    ]
    if not steady:
        arguments.append("count (t,) int32, any values: its length t is the number of steps")
    names = [argument.split()[0] for argument in arguments]
    return {
        "artifact": artifact,
        "call": f"jax.export.deserialize(bytearray(open(artifact, 'rb').read())).call({', '.join(names)})",
        "arguments": arguments,
        "result": f"{_shape(exported.out_avals[0].shape)} float32, physical units"
        + ("" if steady else ": the frames after the given ones, `dt` apart"),
        "needs": "jax and flatbuffers; every shape is compiled once, so step with one length of `count`",
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "kind": task.kind,
        "task": task.name,
        "channels": list(task.channels),
        "inputs": [item.name for item in task.inputs],
        "context": None if steady else run.model.context,
        "dt": None if steady else task.dt,
        "axes": [
            {"name": axis, "points": points, "origin": origin, "spacing": spacing, "periodic": periodic}
            for axis, points, origin, spacing, periodic in zip(
                task.axes, task.shape, task.origin, task.spacing, task.periodic, strict=True
            )
        ],
        "coefficients": [{"name": item.name, "scale": item.scale} for item in task.coefficients],
        "units": "those of the training data, in and out; nothing has to be normalised",
        "run": str(run.path),
        "checkpoint": f"checkpoints/{run.stage}/{run.step}",
        "checkpoint_digest": run.digest,
        "versions": {name: version(name) for name in ("ups_jax", "jax", "jaxlib")},
    }


def _conditions(
    task: Task, fields: Float[Array, "b *s c"], coefficients: Float[Array, "b p"], known: Float[Array, "b p"]
) -> Conditions:
    return Conditions(dt=jnp.full(fields.shape[:1], task.dt, jnp.float32), coefficients=coefficients, mask=known)


def _export(function: Any, platforms: Sequence[str], *shapes: Any) -> export.Exported:
    """The last of four shapes is that of `count`."""
    kinds = (jnp.float32, jnp.float32, jnp.float32, jnp.int32)
    abstract = [
        jax.ShapeDtypeStruct(shape if isinstance(shape, tuple) else (shape,), kind)
        for shape, kind in zip(shapes, kinds, strict=False)
    ]
    return export.export(jax.jit(function), platforms=tuple(platforms))(*abstract)


def _shape(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
