"""Does a model that is told the viscosity beat the same one that is not, and does it obey another viscosity?

Both are trained on Burgers' equation with a viscosity for each trajectory, for the same steps. Then the same initial
fields are rolled out at several viscosities, and energy and gradients at the end are held against the solver's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ups_jax.cli import runner
from ups_jax.config.packaged import CONFIGS

_RESULTS = Path(__file__).resolve().parent / "results" / "conditioning.json"
_FULL = {"config": "burgers1d", "preset": "default", "steps": 3000, "samples": 32}
_QUICK = {"config": "tiny", "preset": "tiny", "steps": 300, "samples": 4}
# The model that is told the viscosity, and the one that is not, by what they are told.
_MODELS = {"told": "{nu: log10}", "not told": "{}"}


def main(argv: list[str] | None = None) -> int:
    parser = runner.make_parser(__doc__)
    parser.add_argument("--steps", type=runner.positive_int, help="of each training (default: 3000)")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="built-in data (default: data)")
    parser.add_argument("--work", type=Path, default=Path("runs/conditioning"), metavar="DIR", help="the two runs")
    parser.add_argument("--out", type=Path, help="JSON (default: benchmarks/results/conditioning[_quick].json)")
    parser.add_argument("--quick", action="store_true", help="300 steps of a small model on tiny data")
    return runner.run_command(parser, compare, argv)


def compare(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ups_jax import simulate
    from ups_jax.config import load
    from ups_jax.data import open_dataset
    from ups_jax.inference.trained_model import load_task_model
    from ups_jax.simulate.presets import Preset, get_preset
    from ups_jax.trainer.train import train

    chosen = _QUICK if args.quick else _FULL
    steps = args.steps or int(str(chosen["steps"]))
    console, runs = Console(width=100), {}
    for name, coefficients in _MODELS.items():
        overrides = [
            f"data.root={args.data_root}",
            f"data.tasks.0.preset={chosen['preset']}",
            f"data.tasks.0.coefficients={coefficients}",
            "stages.operator.epochs=0",
            f"stages.operator.steps={steps}",
            "logging.wandb.enabled=false",
        ]
        cfg = load(CONFIGS / f"{chosen['config']}.yaml", overrides)
        simulate.generate_missing(cfg)
        path = args.work / f"{chosen['preset']}_{steps}_{name.replace(' ', '_')}"
        train(cfg, "operator", path, console=Console(quiet=True))
        runs[name] = load_task_model(path)
    conditioned, unconditioned = (runs[name] for name in _MODELS)
    preset = get_preset("burgers1d", str(chosen["preset"]))
    if not isinstance(preset, Preset):
        raise TypeError("Burgers' equation is a transient task of the spectral solver")
    dataset = open_dataset(conditioned.config, conditioned.task)
    trajectories = dataset.trajectories("test")
    horizon = trajectories.fields.shape[1] - 1
    predictions = {
        "told": conditioned.rollout(trajectories.fields[:, 0], horizon, {"nu": trajectories.cond[:, 0]}),
        "not told": unconditioned.rollout(trajectories.fields[:, 0], horizon),
        "persistence": np.repeat(trajectories.fields[:, :1], horizon, axis=1),
    }
    errors = {name: nrmse(frames, trajectories.fields[:, 1:]) for name, frames in predictions.items()}
    initial = trajectories.fields[: int(str(chosen["samples"])), 0]
    blind = unconditioned.rollout(initial, horizon)
    response = []
    for nu in np.geomspace(preset.low, preset.high, 5).tolist():
        truth = reference(preset, initial, nu, horizon)
        response.append(
            {"nu": nu}
            | of_last("solver", truth)
            | of_last("told", conditioned.rollout(initial, horizon, {"nu": nu}))
            | of_last("not told", blind)
            | {"nrmse told": float(nrmse(conditioned.rollout(initial, horizon, {"nu": nu}), truth).mean())}
            | {"nrmse not told": float(nrmse(blind, truth).mean())}
        )
    result = {
        "preset": chosen["preset"],
        "steps": steps,
        "trajectories": len(trajectories.fields),
        "rollout_nrmse": {name: float(values.mean()) for name, values in errors.items()},
        "told_is_better_on": float((errors["told"] < errors["not told"]).mean()),
        "falls_with_nu": {
            f"{quantity} {name}": bool((np.diff([row[f"{quantity} {name}"] for row in response]) < 0).all())
            for name in ("solver", "told")
            for quantity in ("energy", "gradient")
        },
        "response": response,
    }
    tell(console, result)
    out = args.out or (_RESULTS.with_stem("conditioning_quick") if args.quick else _RESULTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def reference(preset: Any, initial: Float[np.ndarray, "b x c"], nu: float, steps: int) -> Float[np.ndarray, "b t x c"]:
    """The frames that the built-in solver makes of the same initial fields, at another viscosity."""
    import exponax
    import jax
    import jax.numpy as jnp

    from ups_jax.simulate.solvers import burgers

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        step = exponax.RepeatedStepper(burgers(preset, jnp.asarray(nu)), preset.substeps)
        fine = np.stack(
            [exponax.map_between_resolutions(jnp.asarray(u.T, float), preset.solved_points) for u in initial]
        )
        frames = jax.jit(jax.vmap(exponax.rollout(step, steps)))(fine)
    return np.asarray(frames[:, :, 0, :: preset.solved_points // preset.points], np.float32)[..., None]


def nrmse(pred: Float[np.ndarray, "b t x c"], truth: Float[np.ndarray, "b t x c"]) -> Float[np.ndarray, " b"]:
    """Of each trajectory, the mean over its frames."""
    return np.mean(np.sqrt(np.mean((pred - truth) ** 2, (2, 3)) / np.mean(truth**2, (2, 3))), axis=1)


def of_last(name: str, frames: Float[np.ndarray, "b t x c"]) -> dict[str, float]:
    """Energy and mean squared gradient of the last frames, the latter on a domain of length 2."""
    last = frames[:, -1, :, 0]
    slope = np.fft.irfft(1j * np.pi * np.arange(last.shape[1] // 2 + 1) * np.fft.rfft(last), last.shape[1])
    return {f"energy {name}": float(np.mean(last**2) / 2), f"gradient {name}": float(np.mean(slope**2))}


def tell(console: Any, result: dict[str, Any]) -> None:
    from rich.table import Table

    errors = ", ".join(f"{name} {value:.3g}" for name, value in result["rollout_nrmse"].items())
    console.print(
        f"rollout nRMSE of {result['trajectories']} test trajectories after {result['steps']} steps: {errors}"
    )
    console.print(f"told is better on {100 * result['told_is_better_on']:.0f} % of them")
    falls = all(result["falls_with_nu"].values())
    console.print(f"energy and gradients fall with the viscosity, as the solver's: {'yes' if falls else 'no'}")
    columns = list(result["response"][0])
    table = Table(*columns, title="the same initial fields at other viscosities, last frame")
    for row in result["response"]:
        table.add_row(*(f"{row[name]:.3g}" for name in columns))
    console.print(table)


if __name__ == "__main__":
    import sys

    sys.exit(main())
