"""The command `ups-jax`: its subcommands, the three ways to call it, and the names of packaged configurations."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import CONFIGS, ROOT, quiet

from ups_jax.cli.main import main
from ups_jax.config import load, to_dict
from ups_jax.config.packaged import packaged_config_summaries
from ups_jax.core.commands import COMMANDS, command, command_line
from ups_jax.core.errors import ConfigError


def test_every_subcommand_has_a_module_and_every_script_is_a_subcommand() -> None:
    assert all((ROOT / "ups_jax" / "cli" / f"{name}.py").is_file() for name in COMMANDS)
    scripts = {script for script, _ in COMMANDS.values() if script is not None}
    assert scripts == {path.name for path in (ROOT / "scripts").glob("*.py")}


def test_without_a_subcommand_it_lists_them_and_a_misspelt_one_has_a_suggestion(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert main(["trian"]) == ConfigError.exit_code
    assert "train" in capsys.readouterr().err


def cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick(name: str) -> None:
    line = [sys.executable, "-m", "ups_jax", name, "--help"]
    taken = []
    # The best of several, because a busy machine stretches even a process's own time.
    while len(taken) < 5 and min(taken, default=1) >= 0.3:
        before = cpu_seconds_of_children()
        result = subprocess.run(line, capture_output=True, text=True, env=quiet(), check=True)
        taken.append(cpu_seconds_of_children() - before)
    assert min(taken) < 0.3
    assert result.stdout.startswith(f"usage: python -m ups_jax {name}")


@pytest.mark.parametrize(
    "arguments", [("train",), ("validate",), ("pipeline", "--train-config", "tiny"), ("profile",)], ids=lambda a: a[0]
)
def test_a_misspelt_key_is_reported_before_a_large_library_is_loaded(arguments: tuple[str, ...]) -> None:
    code = (
        f"import sys; from ups_jax.cli.main import main; assert main({[*arguments, 'optimzer.lr=1']!r}) == 2; "
        "sys.exit(','.join({'jax', 'h5py', 'scipy', 'matplotlib', 'orbax'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=quiet())
    assert result.returncode == 0 and "`optimizer`" in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("/env/bin/ups-jax", "ups-jax inspect"),
        ("/site/ups_jax/__main__.py", "python -m ups_jax inspect"),
        (str(ROOT / "scripts" / "train.py"), "python scripts/inspect_data.py"),
        # A user's own script of the same name.
        ("/project/scripts/train.py", "ups-jax inspect"),
        ("/somewhere/notebook.py", "ups-jax inspect"),
        ("scripts/other.py", "ups-jax inspect"),
    ],
)
def test_a_hint_has_the_form_of_the_call(program: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert command("inspect") == text


def test_a_process_is_started_in_the_form_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts" / "run_fast_to_sota.py")])
    assert command_line("train") == [sys.executable, str(ROOT / "scripts" / "train.py")]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "ups-jax")])
    assert command_line("train") == [sys.executable, "-m", "ups_jax", "train"]
    (tmp_path / "ups-jax").touch()
    assert command_line("train") == [sys.executable, str(tmp_path / "ups-jax"), "train"]


def test_a_hint_of_a_script_names_a_script(script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = script("evaluate.py", "--run-dir", "nowhere")
    assert result.returncode != 0 and "python scripts/train.py" in result.stderr


def test_packaged_configurations_are_given_by_name_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert to_dict(load("tiny")) == to_dict(load(CONFIGS / "tiny.yaml"))
    assert main(["configs"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert all(about.endswith((".", ":")) and about == about.strip() for about in packaged_config_summaries().values())
    assert main(["configs", "tiny"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "tiny.yaml").read_text()
    with pytest.raises(ConfigError, match="burgers1d"):
        load("burger1d")
    # The command prints packaged configurations only.
    for name in ("tiny.yaml", "../tiny", str(CONFIGS / "tiny.yaml")):
        assert main(["configs", name]) == ConfigError.exit_code


def test_a_file_beside_the_including_one_wins_over_a_packaged_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("include: tiny.yaml\nseed: 3\n")
    assert load(tmp_path / "mine.yaml").latent == load("tiny").latent
    (tmp_path / "by_name.yaml").write_text("include: tiny\n")
    assert load(tmp_path / "by_name.yaml").latent == load("tiny").latent
    (tmp_path / "tiny.yaml").write_text("include: burgers1d.yaml\nlatent: {dim: 40}\n")
    assert load(tmp_path / "mine.yaml").latent.dim == load(tmp_path / "by_name.yaml").latent.dim == 40
    # A file may have the name of the packaged one that it includes; a folder is not a configuration.
    (tmp_path / "tiny.yaml").write_text("include: tiny.yaml\nseed: 5\n")
    assert load(tmp_path / "tiny.yaml").latent == load("tiny").latent
    (tmp_path / "tiny.yaml").unlink()
    (tmp_path / "tiny").mkdir()
    assert load(tmp_path / "by_name.yaml").latent == load("tiny").latent


def test_a_path_with_a_folder_is_never_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        load("./tiny")
    (tmp_path / "main.yaml").write_text("include: ./tiny.yaml\n")
    with pytest.raises(ConfigError):
        load("main.yaml")
