"""Compilation: kept on disk by default, done ahead of the first step, or not at all."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from commands import CONFIGS
from rich.console import Console

from ups_jax.config import load
from ups_jax.core.xla import compile_ahead, enable_compilation_cache, jit_context
from ups_jax.tracking import read_jsonl
from ups_jax.trainer import train as training


def test_what_was_compiled_ahead_is_neither_traced_nor_compiled_again() -> None:
    traced = []

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return 2 * x

    x = jnp.arange(3.0)
    assert compile_ahead(double, x) > 0
    compilations: list[str] = []
    listen = lambda name, *_, **__: compilations.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert double(x).tolist() == [0.0, 2.0, 4.0]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert traced == [(3,)]
    assert not [name for name in compilations if "backend_compile" in name]


def test_programs_are_kept_under_the_user_s_cache_unless_another_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jax.config.jax_compilation_cache_dir
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == before
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "ups_jax" / "compilation")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_shortest_compilation_that_is_kept_is_the_user_s_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    try:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
        enable_compilation_cache()
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
        monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        enable_compilation_cache()
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.2
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def test_a_run_without_compilation_is_wholly_so(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(*_: object) -> None:
        seen.append(jax.config.jax_disable_jit)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run_with_writers", look)
    for value in ("false", "true"):
        cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", f"training.compile={value}"])
        with pytest.raises(KeyboardInterrupt):
            training.train(cfg, "operator", tmp_path / value, console=Console(quiet=True))
    assert seen == [True, False]
    with jit_context(enabled=False):
        assert isinstance(jax.jit(lambda x: float(x))(jnp.ones(())), float)


# Every operation of every shape is compiled by itself: half a minute.
@pytest.mark.slow
def test_without_compilation_a_run_trains(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["operator.spectral.depth=1", "operator.spectral.hidden_dim=4", "latent.dim=2", "training.batch_size=2",
             "optimizer.name=adamw", "stages.operator.steps=2", "stages.operator.accum_steps=2", "training.remat=full",
             "evaluation.val_trajectories=1", "logging.every_steps=1", "training.eval_every=99",
             "training.time_stride=16"]  # fmt: skip
    cfg = load(CONFIGS / "tiny.yaml", [f"data.root={data_root}", "training.compile=false", *small])
    training.train(cfg, "operator", tmp_path / "run", console=Console())
    assert "compiled" not in capsys.readouterr().out
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2] and all(record["loss"] > 0 for record in records)
