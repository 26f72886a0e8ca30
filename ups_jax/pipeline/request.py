"""What a pipeline run is asked for: its options, and the three configurations that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ups_jax.config import Config, from_dict, load, merge, to_dict
from ups_jax.core.errors import ConfigError
from ups_jax.core.files import write_atomically
from ups_jax.pipeline.cache_keys import digest_of

# The configurations by the names of their files in `configs/`.
CONFIG_NAMES = ("train", "small_eval", "full_eval")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the command `pipeline` by their names there."""

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
    def configs(self) -> dict[str, Path]:
        """The files of the three configurations by their names."""
        train = self.train_config
        return dict(
            zip(CONFIG_NAMES, (train, self.small_eval_config or train, self.full_eval_config or train), strict=True)
        )

    @property
    def train_overrides(self) -> tuple[str, ...]:
        """The further arguments of the training that are overrides of its configuration."""
        return tuple(text for text in self.train_extra_args if "=" in text and not text.startswith("-"))

    @property
    def train_arguments(self) -> tuple[str, ...]:
        """The other further arguments of the training."""
        return tuple(text for text in self.train_extra_args if text not in self.train_overrides)

    @property
    def champions_root(self) -> Path:
        """Beside the folder of the runs."""
        return self.runs_root.parent / "champions"

    def digest(self, resolved: Resolved) -> str:
        """Equal for two starts of the same command, wherever it reads its configuration from."""
        paths = ("train_config", "small_eval_config", "full_eval_config", "overrides", "run_id", "runs_root")
        options = {key: value for key, value in asdict(self).items() if key not in paths}
        return digest_of([{key: str(value) for key, value in options.items()}, resolved.to_dict()])


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The configurations with all that they include and every default."""

    train: Config
    small_eval: Config
    full_eval: Config

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the names of the configurations."""
        return {name: to_dict(getattr(self, name)) for name in CONFIG_NAMES}

    def write(self, directory: Path) -> None:
        """Write each to `configs/NAME_resolved.yaml`, which every step gets."""
        for name, values in self.to_dict().items():
            write_atomically(config_path(directory, name), yaml.safe_dump(values, sort_keys=False))

    def of_seed(self, seed: int) -> Config:
        """The training configuration with another seed."""
        return from_dict(merge(to_dict(self.train), [f"seed={seed}"]))


def config_path(directory: Path, name: str) -> Path:
    """Where a run keeps a resolved configuration."""
    return directory / "configs" / f"{name}_resolved.yaml"


def resolve_configs(request: Request) -> Resolved:
    """Read the three configurations; the overrides are of all of them, those among the training's further arguments
    of the training's alone. Raises `ConfigError`."""
    own = {"train": request.train_overrides}
    loaded = {name: load(file, [*request.overrides, *own.get(name, ())]) for name, file in request.configs.items()}
    return Resolved(**{name: _judged(cfg, request) for name, cfg in loaded.items()})


def _judged(cfg: Config, request: Request) -> Config:
    """The configuration with the gates that the options ask for."""
    rules = cfg.gates
    ratios = ({} if request.clear_default_ratio_gates else rules.ratios) | dict(request.gate_ratios)
    higher = set(rules.higher_is_better)
    if request.metric_direction is not None:
        names = {rules.metric, rules.metric.rpartition("/")[2]}
        higher = higher | {rules.metric} if request.metric_direction == "higher" else higher - names
    asked = to_dict(cfg)
    asked["gates"] |= {"ratios": ratios, "higher_is_better": sorted(higher)}
    return from_dict(asked, "--gate-ratio")


def check_same(directory: Path, resolved: Resolved) -> None:
    """Refuse to go on in a run of other configurations: what is judged, and how it is told, may change; ConfigError
    names the first key that may not."""
    for name in CONFIG_NAMES:
        path = config_path(directory, name)
        if not path.exists():
            continue
        old, new = _kept(to_dict(load(path))), _kept(to_dict(getattr(resolved, name)))
        if old != new:
            changed = ", ".join(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            raise ConfigError(
                f"{directory}: holds a run of another configuration ({name}: {changed} differ); give another --run-id, "
                "or none for a new run"
            )


def _kept(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("gates", "logging")}
