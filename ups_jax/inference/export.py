"""Export of a trained model as one StableHLO file with normalization, encoder, operator, decoder and parameters.

A program needs only jax to call the file's function. A JSON file beside it describes the arguments and the result.
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
from ups_jax.inference.trained_model import TrainedModel, load_task_model
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
    """Write a trained model as a StableHLO file with its JSON description, and return both paths.

    Args:
        path: The run directory.
        output: The StableHLO file if the name has a suffix, otherwise a folder for `model.stablehlo` and `model.json`.
        platforms: Platforms that can run the file, from `PLATFORMS`; this machine need not have them.
        stage: The stage whose model is exported, as in `load_run`.
        task: Name of the task whose model is exported; required if the run has several tasks.

    Raises:
        CheckpointError: The run has no checkpoint of the stage.
        ConfigError: A platform, the output, the stage or the task is not valid, or the task is on a point cloud.
        StorageError: A file cannot be written.
    """
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        problem = f"unknown platform {', '.join(unknown)}" if unknown else "no platform given"
        raise ConfigError(f"{problem}; choose from {', '.join(PLATFORMS)}")
    artifact = output if output.suffix else output / _NAME
    description_path = artifact.with_suffix(".json")
    if description_path == artifact:
        raise ConfigError(
            f"--output {output}: the suffix .json is reserved for the description; use another, such as .stablehlo"
        )
    run = load_task_model(path, task, stage=stage)
    if run.task.scattered:
        raise ConfigError(
            f"{path}: the task {run.task.name} is on a point cloud, and only models on grids can be exported; "
            "use load_run"
        )
    exported = export_model(run, platforms)
    # One lock for both files, so that they always belong to the same export.
    with lock_file(artifact, "wait for it, or give another --output"):
        write_atomically(artifact, bytes(exported.serialize()))
        write_atomically(
            description_path, json.dumps(artifact_description(run, exported, artifact.name), indent=2) + "\n"
        )
    return artifact, description_path


def export_model(run: TrainedModel, platforms: Sequence[str]) -> export.Exported:
    """Return the exported function `(fields, coefficients, mask, count) -> frames` in physical units.

    Batch size and number of steps are symbolic dimensions, read from shapes: the number of steps is the length of
    `count`, an int32 array of arbitrary values. For a steady task the function is
    `(inputs, coefficients, mask) -> solution`, on the trained grid.
    """
    task, steady = run.task, run.task.kind == "steady"

    def predict(
        fields: Float[Array, "b *k i"],
        coefficients: Float[Array, "b p"],
        mask: Float[Array, "b p"],
        *count: Int[Array, " t"],
    ) -> Float[Array, "b *t c"]:
        dt = jnp.full(fields.shape[:1], task.dt, jnp.float32)
        cond = Conditions(dt=dt, coefficients=coefficients, mask=mask)
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


def artifact_description(run: TrainedModel, exported: export.Exported, artifact: str) -> dict[str, Any]:
    """Return the JSON description of an exported model: arguments, result, grid, units and checkpoint.

    Args:
        run: The trained model.
        exported: The function that `export_model` returned for it.
        artifact: Name of the StableHLO file.
    """
    task = run.task
    steady = task.kind == "steady"
    arguments = [
        f"{'inputs' if steady else 'fields'} {_to_text(exported.in_avals[0].shape)} float32, physical units",
        f"coefficients {_to_text(exported.in_avals[1].shape)} float32, physical units, in the order of `coefficients`",
        f"mask {_to_text(exported.in_avals[2].shape)} float32, 1 where a coefficient is given, 0 for its training mean",
    ]
    if not steady:
        arguments.append("count (t,) int32, arbitrary values: its length t is the number of steps")
    names = [argument.split()[0] for argument in arguments]
    return {
        "artifact": artifact,
        "call": f"jax.export.deserialize(bytearray(open(artifact, 'rb').read())).call({', '.join(names)})",
        "arguments": arguments,
        "result": f"{_to_text(exported.out_avals[0].shape)} float32, physical units"
        + ("" if steady else ": the frames after the context, with time step `dt`"),
        "needs": "jax and flatbuffers; every shape is compiled once, so use one length of `count`",
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
        "units": "the units of the training data for arguments and result; no normalization is needed",
        "run": str(run.path),
        "checkpoint": f"checkpoints/{run.stage}/{run.checkpoint.step}",
        "checkpoint_digest": run.digest,
        "versions": {name: version(name) for name in ("ups_jax", "jax", "jaxlib")},
    }


def _to_text(shape: Sequence[Any]) -> str:
    """Return a shape as text, such as `(b, 64, 1)`, with symbolic dimensions by name."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
