"""The request of a pipeline run: the options of the command, and the three configurations that they define."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ups_jax.config import Config, apply_overrides, from_dict, load, to_dict, yaml
from ups_jax.core.errors import ConfigError
from ups_jax.core.files import write_atomically
from ups_jax.pipeline.cache_keys import json_digest

# The configurations by the names of their files in `configs/`.
CONFIG_NAMES = ("train", "small_eval", "full_eval")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command `pipeline`; each field has the name of its option."""

    train_config: Path
    small_eval_config: Path | None = None
    full_eval_config: Path | None = None
    overrides: tuple[str, ...] = ()
    metric_direction: str | None = None
    gate_ratios: Mapping[str, float] = field(default_factory=dict)
    clear_default_ratio_gates: bool = False
    run_id: str | None = None
    train_stage: str = "all"
    train_extra_args: tuple[str, ...] = ()
    n_seeds: int = 1
    skip_validation: bool = False
    skip_data_check: bool = False
    skip_dry_run: bool = False
    skip_training: bool = False
    skip_small_eval: bool = False
    skip_full_eval: bool = False
    skip_analysis: bool = False
    force_train: bool = False
    force_full_eval: bool = False
    redo_small_eval: bool = False
    redo_full_eval: bool = False
    leaderboard_csv: Path = Path("reports/leaderboard.csv")
    leaderboard_html: Path | None = None
    baseline_labels: tuple[str, ...] = ("champion", "baseline")
    baseline_run_id: str | None = None
    promote_demoted: bool = False
    champion_label: str = "champion"
    eval_device: str = "auto"
    runs_root: Path = Path("artifacts/runs")
    wandb_mode: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    @property
    def config_files(self) -> dict[str, Path]:
        """The paths of the configuration files, by the names in `CONFIG_NAMES`."""
        train = self.train_config
        return dict(
            zip(CONFIG_NAMES, (train, self.small_eval_config or train, self.full_eval_config or train), strict=True)
        )

    @property
    def train_overrides(self) -> tuple[str, ...]:
        """The entries of `train_extra_args` that override the training configuration, such as `seed=1`."""
        return tuple(text for text in self.train_extra_args if "=" in text and not text.startswith("-"))

    @property
    def train_arguments(self) -> tuple[str, ...]:
        """The entries of `train_extra_args` that are options of the training command."""
        return tuple(text for text in self.train_extra_args if text not in self.train_overrides)

    @property
    def champions_root(self) -> Path:
        """The folder of the champions, next to the folder of the runs."""
        return self.runs_root.parent / "champions"

    def digest(self, resolved: ResolvedConfigs) -> str:
        """Return a digest of the options and of the content of the configurations, without their paths.

        An unfinished run with the same digest is resumed.
        """
        paths = ("train_config", "small_eval_config", "full_eval_config", "overrides", "run_id", "runs_root")
        options = {key: value for key, value in asdict(self).items() if key not in paths}
        return json_digest([{key: str(value) for key, value in options.items()}, resolved.to_dict()])


@dataclass(frozen=True, kw_only=True)
class ResolvedConfigs:
    """The configurations of training, small and full evaluation with all includes, overrides and defaults applied."""

    train: Config
    small_eval: Config
    full_eval: Config

    def to_dict(self) -> dict[str, Any]:
        """Return the values of each configuration as a dictionary, by its name in `CONFIG_NAMES`."""
        return {name: to_dict(getattr(self, name)) for name in CONFIG_NAMES}

    def write(self, directory: Path) -> None:
        """Write each configuration to `configs/NAME_resolved.yaml`, which the steps read.

        Raises:
            StorageError: If a file cannot be written.
        """
        for name, values in self.to_dict().items():
            write_atomically(config_path(directory, name), yaml.dump(values))

    def train_with_seed(self, seed: int) -> Config:
        """Return the training configuration with another seed."""
        return from_dict(apply_overrides(to_dict(self.train), [f"seed={seed}"]))


def config_path(directory: Path, name: str) -> Path:
    """Return the path of the resolved configuration `name` in a run directory."""
    return directory / "configs" / f"{name}_resolved.yaml"


def resolve_configs(request: Request) -> ResolvedConfigs:
    """Load the three configurations that a request names, with the options of the request applied.

    `overrides` apply to all configurations, `train_overrides` to the training configuration only.

    Raises:
        ConfigError: If a configuration is not valid.
    """
    further = {"train": request.train_overrides}
    loaded = {
        name: load(file, [*request.overrides, *further.get(name, ())]) for name, file in request.config_files.items()
    }
    return ResolvedConfigs(**{name: _with_gate_options(cfg, request) for name, cfg in loaded.items()})


def _with_gate_options(cfg: Config, request: Request) -> Config:
    """Return a configuration with the gate options of a request, such as --gate-ratio, applied to `gates`."""
    rules = cfg.gates
    ratios = ({} if request.clear_default_ratio_gates else rules.ratios) | dict(request.gate_ratios)
    higher = set(rules.higher_is_better)
    if request.metric_direction is not None:
        names = {rules.metric, rules.metric.rpartition("/")[2]}
        higher = higher | {rules.metric} if request.metric_direction == "higher" else higher - names
    values = to_dict(cfg)
    values["gates"] |= {"ratios": ratios, "higher_is_better": sorted(higher)}
    return from_dict(values, "--gate-ratio")


def check_same_configs(directory: Path, resolved: ResolvedConfigs) -> None:
    """Raise an error if a run directory contains a run with other configurations.

    The sections `gates` and `logging` may differ.

    Raises:
        ConfigError: If another section differs; the message names it.
    """
    for name in CONFIG_NAMES:
        path = config_path(directory, name)
        if not path.exists():
            continue
        old, new = _fixed_sections(to_dict(load(path))), _fixed_sections(to_dict(getattr(resolved, name)))
        if old != new:
            changed = ", ".join(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            raise ConfigError(
                f"{directory}: contains a run whose configuration `{name}` differs in {changed}; choose another "
                "--run-id, or omit --run-id to start a new run"
            )


def _fixed_sections(values: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a configuration that must not change when a run is resumed."""
    return {key: value for key, value in values.items() if key not in ("gates", "logging")}
