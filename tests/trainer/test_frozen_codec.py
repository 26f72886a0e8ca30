"""Training on latents: they are the codec's, a step is that on fields without the codec, and nothing moves that."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import CONFIGS
from point_tasks import still_task
from rich.console import Console
from shared_programs import SMALL_MODEL, sharing, state

from ups_jax import simulate
from ups_jax.config import Config, load
from ups_jax.core.commands import command
from ups_jax.core.errors import ConfigError, DataError, DivergedError, Stopped
from ups_jax.data import Mixture, batch_at, open_mixture
from ups_jax.data.sources.in_memory import MemorySource
from ups_jax.losses import latent_losses, operator_losses
from ups_jax.models import encode, normalize
from ups_jax.models.codec import CODEC
from ups_jax.runs.best_weights import Weights, best_weights
from ups_jax.tracking import read_jsonl
from ups_jax.trainer.encode_latents import encode_dataset, encoding_config
from ups_jax.trainer.frozen_codec import check_grid_task, describe_latents, with_stored_latents
from ups_jax.trainer.loop import CallPace
from ups_jax.trainer.train import train
from ups_jax.training.build import build_model

shared_programs = pytest.fixture(scope="module", autouse=True)(sharing)

KEY = jax.random.key(5)
QUIET = Console(quiet=True)
SMALL = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=8"]
# What compiles fast beside the saved run's codec.
FAST = [*SMALL_MODEL[3:], "evaluation.val_trajectories=1"]
NO_STEP = optax.identity()
Main = Callable[..., subprocess.CompletedProcess[str]]


def configured(data_root: Path, *overrides: str) -> Config:
    return load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", *overrides])


def on_latents(data_root: Path, folder: Path, *overrides: str) -> Config:
    """The configuration of a short training on a folder of latents."""
    source = ["data.source=latents", f"data.latents={folder}", "training.input_noise=0"]
    short = ["stages.operator.steps=8", "training.eval_every=0.25", "logging.every_steps=1"]
    return configured(data_root, *source, *short, *FAST, *overrides)


@pytest.fixture(scope="session")
def encoded(saved_run: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The latents of the saved run's codec, in shards of a few trajectories."""
    out, weights = tmp_path_factory.mktemp("latents") / "a", best_weights(saved_run, "operator")
    cfg = encoding_config(weights, None, [])
    encode_dataset(weights, cfg, open_mixture(cfg).datasets[0], out, shard_bytes=300_000)
    return out


def some_weights(cfg: Config, data: Mixture) -> tuple[Any, Weights]:
    """A model and parameters that are nowhere zero."""
    model = build_model(cfg, data.tasks[0], "operator")
    fields = replace(cfg, data=replace(cfg.data, source="fields", latents=None))
    params = state(model, NO_STEP, batch_at(data, fields, "operator", 0), KEY).params
    rng = np.random.default_rng(5)
    params = jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32), params)
    origin = {"weights": params, "digest": "", "step": 0, "fingerprint": data.fingerprint}
    return model, Weights(params=params, config=fields, tasks=data.tasks, **origin)


@pytest.fixture
def walked(data_root: Path, tmp_path: Path) -> Callable[..., tuple[Any, Any, Config, dict[str, Mixture]]]:
    """A model, parameters, their configuration, and the data as fields and as latents."""

    def make(*overrides: str) -> tuple[Any, Any, Config, dict[str, Mixture]]:
        cfg = on_latents(data_root, tmp_path / "latents", *SMALL, "training.batch_size=4",
                         *overrides)  # fmt: skip
        simulate.generate_missing(cfg)
        data = open_mixture(cfg)
        model, weights = some_weights(cfg, data)
        # Neither trajectories nor frames fill the last chunk or the last shard.
        encode_dataset(weights, cfg, data.datasets[0], tmp_path / "latents", chunk=50, shard_bytes=300_000)
        both = {"fields": data, "latents": with_stored_latents(cfg, "operator", data, None, weights, None)}
        return model, weights.params, cfg, both

    return make


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (2, 2)])
def test_a_cache_holds_what_the_codec_makes_of_every_context(walked: Any, context: int, stride: int) -> None:
    model, params, _, data = walked(f"data.context={context}", f"training.time_stride={stride}")
    (dataset,) = data["latents"].datasets
    cache, source = dataset.latents.cache, dataset.source
    first = (context - 1) * stride
    assert cache.manifest.frames == source.frames - first and cache.manifest.trajectories == source.trajectories
    ids, newest = np.arange(source.trajectories), np.arange(first, source.frames)
    latents = cache.read(ids, np.tile(newest, (len(ids), 1)))
    expect = jax.jit(partial(encode, model))
    for trajectory in (0, 17, source.trajectories - 1):
        frames = newest[:, None] + stride * np.arange(1 - context, 1)
        fields = source.read(np.full(len(newest), trajectory), frames)
        expected = expect(params, normalize(jnp.asarray(fields), dataset.task.statistics))
        np.testing.assert_allclose(latents[trajectory], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [[], ["data.context=2", "training.time_stride=2"],
     ["training.rollout_horizon=3", "training.truncate=2", "training.pushforward=2", "training.lambda_rollout=0.5"]],
    ids=["one step", "context", "unrolled"],
)  # fmt: skip
def test_a_loss_on_latents_is_the_one_on_fields_with_its_codec_held(walked: Any, overrides: list[str]) -> None:
    priors = {"conservation": 1.0, "smoothness": 0.5, "latent_norm": 0.5}
    weights = [f"training.physics_priors.lambda_{name}={value}" for name, value in priors.items()]
    model, params, cfg, data = walked("data.augment=false", *weights, *overrides)
    fields, latents = (batch_at(data[name], cfg, "operator", 1) for name in ("fields", "latents"))
    assert latents.fields is None
    for name in fields.arrays.keys() & latents.arrays.keys():
        np.testing.assert_array_equal(fields.arrays[name], latents.arrays[name])
    (theirs, ours) = (
        jax.jit(jax.value_and_grad(losses(model, cfg.training), has_aux=True))(params, batch, KEY)
        for losses, batch in ((operator_losses, fields), (latent_losses, latents))
    )
    for name, value in theirs[0][1].items():
        np.testing.assert_allclose(ours[0][1][name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for name in params.keys() - {CODEC}:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours[1][name], theirs[1][name]
        )
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(ours[1][CODEC]))
    assert any((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(theirs[1][CODEC]))


def test_latents_are_rolled_as_their_fields_would_be(walked: Any) -> None:
    model, params, cfg, data = walked()
    batch = batch_at(data["latents"], cfg, "operator", 0)
    z = jnp.asarray(batch.latents.reshape(4, -1, batch.latents.shape[-1]))
    frames = jax.jit(partial(model.apply, method="decode"))({"params": params}, z)
    np.testing.assert_allclose(jax.jit(partial(encode, model))(params, frames[:, None]), z, rtol=1e-5, atol=1e-5)
    plain = batch_at(data["latents"], replace(cfg, data=replace(cfg.data, augment=False)), "operator", 0)
    assert (batch.trajectory_id == plain.trajectory_id).all() and (batch.latents != plain.latents).any()


def test_a_single_step_evaluates_no_encoder(walked: Any) -> None:
    """Whatever the codec's parameters are, a step on latents is the same; that on fields costs its operations more."""
    model, params, cfg, data = walked("data.augment=false")
    broken = params | {CODEC: jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params[CODEC])}
    steps = {
        name: (
            jax.jit(jax.value_and_grad(losses(model, cfg.training), has_aux=True)),
            batch_at(data[name], cfg, "operator", 0),
        )
        for name, losses in (("fields", operator_losses), ("latents", latent_losses))
    }
    flops = {}
    for name, (step, batch) in steps.items():
        flops[name] = step.lower(params, batch, KEY).compile().cost_analysis()["flops"]
    step, batch = steps["latents"]
    assert same_bits(step(broken, batch, KEY), step(params, batch, KEY))
    step, batch = steps["fields"]
    larger = params | {CODEC: jax.tree.map(lambda leaf: 3 * leaf, params[CODEC])}
    assert float(step(larger, batch, KEY)[0][0]) != float(step(params, batch, KEY)[0][0])
    kernel = params[CODEC]["stem"]["kernel"]
    tokens = 4 * 32
    # Forward, and backward for the kernel.
    assert flops["fields"] - flops["latents"] > 4 * tokens * kernel.size


def trained(cfg: Config, run: Path, parent: Path | None) -> Any:
    train(cfg, "operator", run, init_from=parent, console=QUIET)
    return best_weights(run, "operator").params


def same_bits(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("overrides", [[], ["training.ema_decay=0.9", "training.rollout_horizon=2"]])
def test_training_leaves_the_codec_as_it_was_to_the_bit(
    saved_run: Path, data_root: Path, encoded: Path, tmp_path: Path, overrides: list[str]
) -> None:
    cfg = on_latents(data_root, encoded, "optimizer.weight_decay=0.1", *overrides)
    before = best_weights(saved_run, "operator").params
    after = trained(cfg, tmp_path / "run", saved_run)
    assert same_bits(after[CODEC], before[CODEC])
    assert not same_bits(after["operator"], before["operator"])
    # The latents are those of the new run as well.
    weights = best_weights(tmp_path / "run", "operator")
    assert with_stored_latents(cfg, "operator", open_mixture(cfg), None, weights, None).datasets[0].latents is not None


def test_another_operator_starts_fresh_on_the_same_codec(
    main: Main, saved_run: Path, data_root: Path, encoded: Path, tmp_path: Path
) -> None:
    arguments = [
        "--config",
        str(CONFIGS / "tiny.yaml"),
        "--init-from",
        str(saved_run),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    arguments += [f"data.root={data_root}", "data.source=latents", f"data.latents={encoded}", "training.input_noise=0"]
    arguments += ["stages.operator.steps=2", "evaluation.enabled=false", *SMALL]
    result = main("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert (
        "weights     the codec only (the operator has other shapes and starts untrained): from stage" in result.stdout
    )
    codecs = [best_weights(run, "operator").params[CODEC] for run in (saved_run, tmp_path / "run")]
    assert same_bits(*codecs)
    other = main("train.py", *arguments[:5], str(tmp_path / "other"), *arguments[6:], "latent.dim=5")
    assert other.returncode == 3 and "encoder config" in other.stderr


def test_an_interrupted_training_ends_in_the_same_bits(
    saved_run: Path, data_root: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the disk what the uninterrupted one has from memory.
    cfg = on_latents(data_root, encoded, *SMALL)
    whole = trained(cfg, tmp_path / "whole", saved_run)
    lazy = on_latents(data_root, encoded, *SMALL, "data.loader.memory_gib=0")
    with monkeypatch.context() as patch:
        # A step a call, of each of which the flag is asked.
        patch.setattr(CallPace, "begin_call", lambda self, steps_left: 1)
        flags = iter([False] * 5 + [True] * 99)
        patch.setattr("ups_jax.trainer.train.watch_stop_signals", lambda: contextlib.nullcontext(flags.__next__))
        with pytest.raises(Stopped, match="step 5"):
            trained(lazy, tmp_path / "halves", saved_run)
    assert same_bits(trained(lazy, tmp_path / "halves", None), whole)
    losses = [
        [record["loss"] for record in read_jsonl(tmp_path / name / "metrics.jsonl")] for name in ("whole", "halves")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8


SGD = ("training.batch_size=8", "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0")


def same_numbers(one: Any, other: Any, start: Any) -> None:
    """Parameters agree to 1e-6, and have been trained."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, other)
    assert max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, start)), strict=True)) > 1e-4


def test_micro_batches_of_latents_are_one_batch(
    saved_run: Path, data_root: Path, encoded: Path, tmp_path: Path
) -> None:
    start = best_weights(saved_run, "operator").params
    whole = trained(on_latents(data_root, encoded, *SGD), tmp_path / "whole", saved_run)
    parts = ("training.batch_size=2", "stages.operator.accum_steps=4")
    split = trained(on_latents(data_root, encoded, *SGD, *parts), tmp_path / "split", saved_run)
    same_numbers(split, whole, start)


@pytest.mark.multiprocess
def test_several_devices_train_on_latents_as_one_does(
    script: Main, saved_run: Path, data_root: Path, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", str(CONFIGS / "tiny.yaml"), "--init-from", str(saved_run)]
    arguments += [f"data.root={data_root}", "data.source=latents", f"data.latents={encoded}", "training.input_noise=0"]
    arguments += ["stages.operator.steps=8", "evaluation.enabled=false", *SGD]
    for devices in (1, 4):
        monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={devices}")
        ended = script("train.py", *arguments[:4], "--run-dir", str(tmp_path / str(devices)), *arguments[4:])
        assert ended.returncode == 0, ended.stderr
        assert f"{devices} in use" in ended.stdout
    one, four = (best_weights(tmp_path / name, "operator").params for name in ("1", "4"))
    same_numbers(four, one, best_weights(saved_run, "operator").params)


def test_latents_of_anything_else_are_refused_by_name(
    saved_run: Path, data_root: Path, encoded: Path, tmp_path: Path
) -> None:
    def refused(*overrides: str, params: Any = None) -> str:
        cfg = on_latents(data_root, encoded, *overrides)
        weights = best_weights(saved_run, "operator")
        weights = weights if params is None else replace(weights, params=params)
        with pytest.raises(DataError, match=command("encode")) as caught:
            with_stored_latents(cfg, "operator", open_mixture(cfg), None, weights, saved_run)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 3
        return str(caught.value).split(" (different: ")[1].split(")")[0]

    params = best_weights(saved_run, "operator").params
    kernel = params[CODEC]["stem"]["kernel"]
    moved = params | {CODEC: {"stem": params[CODEC]["stem"] | {"kernel": kernel.at[0, 0].multiply(1 + 1e-6)}}}
    assert refused(params=moved) == "encoder weights"
    assert refused("data.context=2") == "encoder config"
    assert refused("data.normalize=rms") == "normaliser"
    # Another split has other statistics as well.
    assert refused("data.split.seed=3") == "normaliser, data or split"
    assert refused("data.tasks.0.coefficients={}") == "data or split"


def test_a_run_goes_on_with_its_own_latents_alone(saved_run: Path, data_root: Path, tmp_path: Path) -> None:
    weights = best_weights(saved_run, "operator")
    cfg = on_latents(data_root, tmp_path / "latents", "stages.operator.steps=2", *SMALL)
    dataset = open_mixture(cfg).datasets[0]
    encode_dataset(weights, cfg, dataset, tmp_path / "latents")
    trained(cfg, tmp_path / "run", saved_run)
    longer = on_latents(data_root, tmp_path / "latents", "stages.operator.steps=4", *SMALL)
    encode_dataset(weights, cfg, dataset, tmp_path / "latents", "bfloat16", overwrite=True)
    with pytest.raises(DataError, match=r"dtype.*--dtype float32 --overwrite"):
        trained(longer, tmp_path / "run", None)
    encode_dataset(weights, cfg, dataset, tmp_path / "latents", overwrite=True)
    trained(longer, tmp_path / "run", None)
    with pytest.raises(ConfigError, match="--stage operator --init"):
        trained(longer, tmp_path / "other", None)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.input_noise=0.1"], r"training\.input_noise=0\.1"),
        (["training.lambda_inv_dec=1"], r"training\.lambda_inv_dec"),
        (["data.tasks=[{name: burgers1d, preset: tiny}, {name: advection1d}]"], r"data\.tasks.*2"),
        (["data.tasks=[{name: darcy2d, kind: steady}]"], "darcy2d"),
    ],
)
def test_what_latents_cannot_give_is_refused_before_there_is_a_run(
    saved_run: Path, data_root: Path, encoded: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        trained(on_latents(data_root, encoded, *overrides), tmp_path / "run", saved_run)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_points_and_half_a_configuration_are_refused(data_root: Path) -> None:
    with pytest.raises(ConfigError, match="still"):
        check_grid_task(still_task())
    for half in ("data.source=latents", "data.latents=here"):
        with pytest.raises(ConfigError, match="latents"):
            configured(data_root, half)


def test_a_corrector_of_the_run_reads_fields_and_says_so(data_root: Path, encoded: Path) -> None:
    cfg = on_latents(data_root, encoded)
    data = open_mixture(cfg)
    assert with_stored_latents(cfg, "diffusion_residual", data, None, None, None) is data
    (line,) = describe_latents(cfg, "diffusion_residual", data)
    assert line == "source      fields: only the operator is trained on latents, diffusion_residual reads fields"


def test_numbers_that_a_type_cannot_hold_are_told_with_their_place(saved_run: Path, tmp_path: Path) -> None:
    weights = best_weights(saved_run, "operator")
    cfg = encoding_config(weights, None, [])
    dataset = open_mixture(cfg).datasets[0]
    fields = dataset.source.read(np.arange(40), np.tile(np.arange(21), (40, 1)))
    fields[23, 9:] *= 1e6
    dataset = replace(dataset, source=MemorySource(name="spiked", grid=dataset.source.grid, fields=fields))
    message = r"^frame 9 of trajectory 23, channel u.*\d\.\d+e\+0\d.*float16.*6\.55e\+04"
    with pytest.raises(ConfigError, match=message) as caught:
        encode_dataset(weights, cfg, dataset, tmp_path / "a", "float16", chunk=7)
    assert str(caught.value).endswith("--dtype bfloat16 or float32")
    for dtype in ("bfloat16", "float32"):
        assert encode_dataset(weights, cfg, dataset, tmp_path / dtype, dtype) is not None
    stem = weights.params[CODEC]["stem"]
    broken = weights.params | {CODEC: {"stem": stem | {"bias": stem["bias"].at[3].set(jnp.nan)}}}
    with pytest.raises(DivergedError, match=r"frame 0.*trajectory 0.*feature 3.*u"):
        encode_dataset(replace(weights, params=broken), cfg, dataset, tmp_path / "b")
    assert not list((tmp_path / "a").glob("latents*")) and not list((tmp_path / "b").glob("latents*"))


def test_a_configuration_with_another_codec_is_told_before_anything_is_encoded(saved_run: Path) -> None:
    weights = best_weights(saved_run, "operator")
    with pytest.raises(ConfigError, match=r"latent\.dim=5.*16"):
        encoding_config(weights, None, ["latent.dim=5"])
    with pytest.raises(ConfigError, match="darcy2d"):
        encoding_config(weights, None, ["data.tasks=[{name: darcy2d, kind: steady}]"])
    cfg = encoding_config(weights, None, ["data.tasks.0.periodic=[]", "data.tasks.0.symmetries=[]"])
    with pytest.raises(ConfigError, match=r"periodic.*False.*True"):
        encode_dataset(weights, cfg, open_mixture(cfg).datasets[0], saved_run / "latents")


def test_the_commands_print_and_end_as_they_should(
    main: Main, saved_run: Path, data_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latents"
    arguments = ["--run-dir", str(saved_run), "--out", str(out), "--dtype", "float16", "--chunk", "100"]
    first = main("encode_latents.py", *arguments)
    assert first.returncode == 0, first.stderr
    assert "40 of 40 trajectories" in first.stdout
    assert first.stdout.splitlines()[-1] == f"{out}: 40 trajectories of 21 latent frames, float16, 0.923 MiB"
    assert main("encode_latents.py", *arguments).stdout.splitlines()[-1].endswith("MiB (already exists)")
    settings = [
        "--config",
        str(CONFIGS / "tiny.yaml"),
        "--init-from",
        str(saved_run),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    settings += [f"data.root={data_root}", "data.source=latents", f"data.latents={out}", "training.input_noise=0"]
    settings += [*FAST, "optimizer.weight_decay=0.1"]
    result = main("train.py", *settings, "stages.operator.steps=2", "evaluation.enabled=false")
    assert result.returncode == 0, result.stderr
    assert re.search("weights .*operator.*step 0", result.stdout)
    assert re.search(f"latents .*{out}.*32 tokens of 18, float16, 0.923 MiB", result.stdout)
    assert re.search("note .*symmetries", result.stdout)
    dry = main("train.py", *settings, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "bit-identical" in dry.stdout
    stale = main("train.py", *settings[:4], *settings[6:], "data.normalize=rms")
    assert stale.returncode == 3 and stale.stderr.count("\n") == 1 and "normaliser" in stale.stderr
