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
from ups_jax.inference.trained_model import TrainedModel, load_task_run
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
    exported = exported_model(run, platforms)
    # The two belong together.
    with lock_file(artifact, "wait for it, or give another --output"):
        write_atomically(artifact, bytes(exported.serialize()))
        write_atomically(described, json.dumps(description(run, exported, artifact.name), indent=2) + "\n")
    return artifact, described


def exported_model(run: TrainedModel, platforms: Sequence[str]) -> export.Exported:
    """(fields, coefficients, known, count) -> frames, physical units; batch and number of steps are symbolic.

    `count` (t,) int32 lends its length alone, the number of steps: a shape is what a program can be compiled for. Of a
    steady task there is none, the fields are the given ones, and what comes are the solutions on the trained grid.
    """
    task, steady = run.task, run.task.kind == "steady"

    def predict(
        fields: Float[Array, "b *k i"],
        coefficients: Float[Array, "b p"],
        known: Float[Array, "b p"],
        *count: Int[Array, " t"],
    ) -> Float[Array, "b *t c"]:
        dt = jnp.full(fields.shape[:1], task.dt, jnp.float32)
        cond = Conditions(dt=dt, coefficients=coefficients, mask=known)
        if steady:
            return solve(run.model, run.weights, fields, cond)
        return rollout(run.model, run.weights, fields, cond, count[0].shape[0])

    batch, steps = export.symbolic_shape("b, t")
    fields = (*task.shape, len(task.inputs)) if steady else (run.model.context, *task.shape, len(task.channels))
    coefficients = jax.ShapeDtypeStruct((batch, len(task.coefficients)), jnp.float32)
    arguments = [jax.ShapeDtypeStruct((batch, *fields), jnp.float32), coefficients, coefficients]
    if not steady:
        arguments.append(jax.ShapeDtypeStruct((steps,), jnp.int32))
    return export.export(jax.jit(predict), platforms=tuple(platforms))(*arguments)


def description(run: TrainedModel, exported: export.Exported, artifact: str) -> dict[str, Any]:
    """What a program has to know to call the artifact; plain JSON."""
    task = run.task
    steady = task.kind == "steady"
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
        "checkpoint": f"checkpoints/{run.stage}/{run.checkpoint.step}",
        "checkpoint_digest": run.digest,
        "versions": {name: version(name) for name in ("ups_jax", "jax", "jaxlib")},
    }


def _shape(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
