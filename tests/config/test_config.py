"""Configuration: every example loads, every mistake names its key and the nearest right one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from commands import CONFIGS
from hypothesis import example, given
from hypothesis import strategies as st

from ups_jax.config import TaskConfig, digest, from_dict, load, to_dict
from ups_jax.config.digest import relevant_values
from ups_jax.core.errors import ConfigError

MINIMAL = "data: {tasks: [{name: burgers1d, periodic: [x], conserved: [u]}]}\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_loads_and_survives_json(path: Path) -> None:
    config = load(path)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.batchsize=3", ("training.batchsize", "training.batch_size")),
        ("optimiser.lr=1", ("optimiser", "`optimizer`")),
        ("lr=1", ("lr", "optimizer.lr")),
        ("data.tasks.0.pth=F", ("data.tasks.0.pth", "data.tasks.0.path")),
        ("data.tasks.burgers1d.conserve=[u]", ("conserve", "conserved")),
        ("stages.operator.optimizer.rl=1", ("stages.operator.optimizer.rl", "stages.operator.optimizer.lr")),
    ],
)
def test_an_unknown_key_names_itself_and_the_nearest_known_key(override: str, named: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(CONFIGS / "tiny.yaml", [override])
    assert all(f"{name}" in str(error.value) for name in named)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    ["training.batch_size=-3", "seed=1.5", "optimizer.lr=on", "optimizer.lr=[1", "training=3", "nothing",
     "data.tasks.7.path=F", "training.batch_size.x=1", "data.split.val=0", "optimizer.lr=.nan"],
)  # fmt: skip
def test_a_wrong_value_is_one_line(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(CONFIGS / "tiny.yaml", [override])
    assert "\n" not in str(error.value)


def test_numbers_and_words_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", MINIMAL + "optimizer: {lr: 1e-3}\nlogging: {wandb: {project: on}}\nseed: 010\n")
    config = load(path)
    assert (config.optimizer.lr, config.logging.wandb.project, config.seed) == (1e-3, "on", 10)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="twice"):
        load(write(tmp_path / "c.yaml", MINIMAL + "seed: 1\nseed: 2\n"))


def test_the_include_tag_names_the_way_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="include: FILE"):
        load(write(tmp_path / "c.yaml", "data: !include other.yaml\n"))


def test_includes_merge_in_order_and_a_circle_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", MINIMAL + "optimizer: {lr: 1e-3, weight_decay: 0.5}\n")
    write(tmp_path / "b.yaml", "optimizer: {lr: 2e-3}\n")
    config = load(write(tmp_path / "c.yaml", "include: [a.yaml, b.yaml]\nseed: 3\n"))
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.seed) == (2e-3, 0.5, 3)
    with pytest.raises(ConfigError, match="includes itself"):
        load(write(tmp_path / "d.yaml", "include: d.yaml\n"))


def test_a_task_given_by_name_keeps_the_facts_it_does_not_restate() -> None:
    plain = load(CONFIGS / "burgers1d.yaml").data.tasks[0]
    given_path = load(CONFIGS / "burgers1d.yaml", ["data.tasks=[{name: burgers1d, path: F.hdf5}]"]).data.tasks[0]
    assert given_path.path == "F.hdf5"
    assert (given_path.symmetries, given_path.coefficients) == (plain.symmetries, plain.coefficients)
    other = load(CONFIGS / "burgers1d.yaml", ["data.tasks=[{name: mine, path: F.hdf5}]"]).data.tasks[0]
    assert (other.symmetries, other.conserved, other.periodic) == ((), (), ())


def test_a_stage_inherits_and_overrides() -> None:
    config = load(
        CONFIGS / "tiny.yaml",
        ["optimizer.weight_decay=0.5", "stages.operator.optimizer.lr=7e-3", "training.patience=4"],
    )
    stage = config.stages.operator
    assert (stage.optimizer.lr, stage.optimizer.weight_decay, stage.patience) == (7e-3, 0.5, 4)
    assert stage.optimizer.name == config.optimizer.name


def test_a_length_that_a_stage_gives_in_steps_takes_the_place_of_the_general_one_in_epochs() -> None:
    config = load(
        CONFIGS / "tiny.yaml",
        ["training.patience=4", "scheduler.t_max=3", "scheduler.eta_min=1e-5", "stages.operator.patience_steps=50",
         "stages.operator.scheduler.t_max_steps=70"],
    )  # fmt: skip
    stage, other = config.stages.operator, config.stages.steady_prior
    assert (stage.patience, stage.patience_steps, stage.scheduler.t_max, stage.scheduler.t_max_steps) == (
        None, 50, None, 70,
    )  # fmt: skip
    assert (stage.scheduler.eta_min, other.patience, other.scheduler.t_max) == (1e-5, 4, 3)


@pytest.mark.parametrize("key", ["training.patience", "scheduler.t_max", "scheduler.step_size", "scheduler.patience"])
def test_a_length_in_both_units_is_refused_once(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(CONFIGS / "tiny.yaml", [f"{key}=3", f"{key}_steps=4"])
    section, name = key.split(".")
    assert f"key `{section}`: `{name}` (epochs) and `{name}_steps`" in str(error.value)
    assert str(error.value).count("both given") == 1
    assert "\n" not in str(error.value)


def test_optimizers_and_schedules_have_their_other_names() -> None:
    other = ["optimizer.name=Muon_Hybrid", "scheduler={name: CosineAnnealingLR, warmup: 0.05}"]
    config = load(CONFIGS / "tiny.yaml", other)
    assert digest(config, "operator") == digest(load(CONFIGS / "tiny.yaml"), "operator")
    for name in ("plateau", "reducelr", "ReduceLROnPlateau"):
        assert load(CONFIGS / "tiny.yaml", [f"scheduler.name={name}"]).scheduler.name == "reducelronplateau"


@pytest.mark.parametrize("where", ["optimizer", "stages.operator.optimizer"])
def test_a_schedule_within_an_optimizer_names_its_own_section(where: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{where}\.scheduler` .*: write `scheduler`"):
        load(CONFIGS / "tiny.yaml", [f"{where}.scheduler={{name: steplr}}"])


def test_the_digest_ignores_length_logging_and_paths_and_nothing_else() -> None:
    def of(*overrides: str) -> str:
        return digest(load(CONFIGS / "tiny.yaml", overrides), "operator")

    same = ["stages.operator.epochs=99", "stages.operator.steps=5", "training.patience=3",
            "training.patience_steps=3", "training.max_seconds=60", "training.remat=full", "training.compile=false",
            "data.root=elsewhere",
            "data.tasks.0.path=F", "logging.every_steps=3", "checkpoint.keep=9", "evaluation.plots=false"]  # fmt: skip
    other = ["seed=18", "optimizer.lr=1e-4", "latent.dim=5", "training.batch_size=3", "data.context=2",
             "operator.spectral.depth=1", "training.lambda_h1=0", "training.lambda_relative_mse=1",
             "training.accum_steps=2",
             "data.split.seed=4"]  # fmt: skip
    assert {of(override) for override in same} == {of()}
    assert len({of(override) for override in other} | {of()}) == len(other) + 1


def test_the_digest_changes_with_the_meaning_of_the_keys_that_a_run_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(CONFIGS / "tiny.yaml")
    with_bands = load(CONFIGS / "tiny.yaml", ["training.lambda_spectral_bands=[1, 0, 0]"])
    digests = digest(plain, "operator"), digest(with_bands, "operator")
    monkeypatch.setattr(sys.modules[digest.__module__], "_REVISED", {})
    assert digest(plain, "operator") == digests[0] and digest(with_bands, "operator") != digests[1]


def test_the_digest_knows_the_windows_of_a_step_and_not_their_micro_batches() -> None:
    def of(rows: int, groups: int, *more: str) -> str:
        cfg = load(CONFIGS / "tiny.yaml", [f"training.batch_size={rows}", f"training.accum_steps={groups}", *more])
        return digest(cfg, "operator")

    assert of(32, 1) == of(16, 2) == of(4, 8) != of(16, 1)
    assert of(32, 1) == of(32, 1, "stages.operator.batch_size=8", "stages.operator.accum_steps=4")
    assert of(32, 1) == of(8, 1, "stages.operator.accum_steps=4")
    assert of(32, 1) != of(32, 1, "stages.operator.batch_size=8")


@pytest.mark.parametrize("text", ["- 1\n", "a: b: c\n", "seed: 1\n"])
def test_a_file_that_is_no_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path / "c.yaml", text))
    assert "\n" not in str(error.value)


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


@given(st.text())
@example("\n=\t")
@example("0\n0=")
def test_any_override_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        load(CONFIGS / "tiny.yaml", [text])
    except ConfigError as error:
        assert "\n" not in str(error)


def test_keys_of_a_task_that_came_later_leave_older_runs_their_digest() -> None:
    cfg = load(CONFIGS / "tiny_steady.yaml")
    (entry,) = relevant_values(to_dict(cfg), "steady_prior")["data"]["tasks"]
    assert not {"solution", "steady_tolerance"} & set(entry)
    schema = {field.name: field.default for field in dataclasses.fields(TaskConfig)}
    assert schema["solution"] == "stored" and schema["steady_tolerance"] == 0.01
    other = load(CONFIGS / "tiny_steady.yaml", ["data.tasks.0.steady_tolerance=0.02"])
    assert digest(other, "steady_prior") != digest(cfg, "steady_prior")


def test_how_points_are_pooled_is_part_of_the_digest_where_it_is_said() -> None:
    def of(*overrides: str) -> str:
        return digest(load(CONFIGS / "heat_mesh.yaml", overrides), "operator")

    plain = ["latent.pooling=nodes", "latent.neighbours=0", "latent.radius=null", "latent.rounds=1"]
    other = ["latent.pooling=queries", "latent.neighbours=4", "latent={neighbours: 4, rounds: 2}",
             "latent={neighbours: 4, radius: 0.5}"]  # fmt: skip
    assert {of(override) for override in plain} == {of()}
    assert len({of(override) for override in other} | {of()}) == len(other) + 1


@pytest.mark.parametrize("key", ["radius=0.1", "rounds=2"])
def test_what_messages_between_points_need_is_asked_for(key: str) -> None:
    with pytest.raises(ConfigError, match=r"key `latent`: .*set `neighbours") as error:
        load(CONFIGS / "heat_mesh.yaml", [f"latent.{key}"])
    assert "\n" not in str(error.value)


def test_the_original_s_name_of_a_stage_is_the_same_stage() -> None:
    cfg = load(CONFIGS / "tiny.yaml", ["stages.diff_residual.epochs=3"])
    assert cfg.stages.diffusion_residual.epochs == 3
    with pytest.raises(ConfigError, match=r"stages\.diff_residual` and `stages\.diffusion_residual` are the same"):
        load(CONFIGS / "tiny.yaml", ["stages={diff_residual: {epochs: 3}, diffusion_residual: {epochs: 4}}"])


def test_former_keys_are_read_with_a_warning_and_leave_the_digest(tmp_path: Path) -> None:
    task = "data: {tasks: [{name: burgers1d, preset: tiny, settled: 0.02}]}\n"
    former = write(
        tmp_path / "former.yaml", f"include: tiny.yaml\ndiffusion: {{own_steps: 0, held_noise: false}}\n{task}"
    )
    with pytest.warns(FutureWarning) as warned:
        config = load(former)
    assert len(warned) == 3
    assert (config.diffusion.model_rollout_steps, config.diffusion.fixed_noise) == (0, False)
    assert config.data.tasks[0].steady_tolerance == 0.02
    with pytest.warns(FutureWarning, match="model_rollout_steps"):
        assert load("tiny", ["diffusion.own_steps=0"]).diffusion.model_rollout_steps == 0
    with pytest.warns(FutureWarning, match="steady_tolerance"):
        assert load("tiny", ["data.tasks.burgers1d.settled=0.02"]).data.tasks[0].steady_tolerance == 0.02
    both = write(tmp_path / "both.yaml", "diffusion: {own_steps: 0, model_rollout_steps: 1}\n")
    with pytest.raises(ConfigError, match="same key"):
        load(both)
    # A record of an earlier version is read without a warning; its digest is the one that version wrote.
    recorded = to_dict(config)
    recorded["diffusion"]["own_steps"] = recorded["diffusion"].pop("model_rollout_steps")
    assert from_dict(recorded) == config
    assert digest(config, "diffusion_residual") == "6c0a4f158468"
