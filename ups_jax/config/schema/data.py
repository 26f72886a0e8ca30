"""Sections of the configuration about data: tasks, files, splits, windows and the loader."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from ups_jax.config.schema.fields import STRICT, Count, OpenFraction, Positive, PositiveFloat, Weight
from ups_jax.core.commands import command


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FilePair:
    """The value of `path` if training, test and (optionally) validation trajectories are in separate files."""

    train: str | tuple[str, ...]
    """File with the training trajectories, or a list of files."""

    test: str | tuple[str, ...]
    """File with the test trajectories, or a list of files."""

    val: str | tuple[str, ...] | None = None
    """File with the validation trajectories, or a list of files; `null` takes a share of the training trajectories."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SymmetryConfig:
    """A map of the field that commutes with the dynamics.

    The map reflects axes and negates channels, then swaps two axes and two channels. Burgers' equation has
    u(x) -> -u(-x): `{reflect: [x], negate: [u]}`. The vorticity equation has w(x, y) -> -w(y, x):
    `{swap: [x, y], negate: [w]}`.
    """

    reflect: tuple[str, ...] = ()
    """Axes that are reflected."""

    negate: tuple[str, ...] = ()
    """Channels whose sign changes."""

    swap: tuple[str, ...] = ()
    """Two axes that are swapped; they need equal points, spacing and periodicity."""

    swap_channels: tuple[str, ...] = ()
    """Two channels that are swapped with the axes, such as the components of a velocity."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """One task: where its data is, and properties of its equation."""

    name: str
    """Name of the task; the name of a built-in task also selects the solver that generates its data."""

    kind: Literal["transient", "steady"] = "transient"
    """`transient`: trajectories in time. `steady`: a solution for given input fields, as in PDEBench's Darcy flow."""

    preset: str = "default"
    """Preset of a built-in task that is generated when there is no `path`."""

    path: str | tuple[str, ...] | FilePair | None = None
    """A file in a layout of PDEBench or The Well, a list of such files on one grid (each may have other coefficients),
    a YAML file that describes arrays, a folder of [shards](your_data.md#large-data-on-slow-disks), a folder with
    `train`, `valid` and `test`, or separate files as below. Relative to the working directory; `~` and patterns such as
    `data/*.hdf5` are expanded. `null` generates a built-in task."""

    channels: tuple[str, ...] = ("u",)
    """Names of the channels. A file that names its channels is read for these; otherwise they name all of its channels,
    in the file's order."""

    periodic: tuple[str, ...] = ()
    """Periodic axes (`x`, `y`, `z`); checked against data on a grid."""

    symmetries: tuple[SymmetryConfig, ...] = ()
    """Symmetries of the dynamics, used for augmentation; checked against data on a grid."""

    conserved: tuple[str, ...] = ()
    """Channels whose integral over space is constant in time; checked against transient data on a grid. The model
    conserves the integral to round-off on the training grid."""

    coefficients: dict[str, Literal["linear", "log10"]] = field(default_factory=dict)
    """PDE coefficients that condition the model, each with the scale on which it is standardized: `linear` or `log10`.
    Their values come from the file."""

    solution: Literal["stored", "last_frame"] = "stored"
    """Solution of a steady task: `stored` in the file, or the `last_frame` of each trajectory of a transient file, as
    the fixed point that its first frame evolves to."""

    steady_tolerance: PositiveFloat = 1e-2
    """Tolerance for `last_frame`: largest difference between the last two frames, relative to the standard deviation of
    the first frame, or to the distance between the first and the last frame if that is larger."""

    @model_validator(mode="after")
    def _check_last_frame(self) -> TaskConfig:
        if self.solution == "last_frame" and self.kind != "steady":
            raise ValueError("`solution: last_frame` is for steady tasks; set `kind: steady`")
        if self.solution == "last_frame" and any(item.negate or item.swap_channels for item in self.symmetries):
            raise ValueError(
                "`solution: last_frame` excludes symmetries that change channels, which would act on the solution "
                "alone; leave out `negate` and `swap_channels`"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitConfig:
    """Which trajectories are used for training, validation and test."""

    method: Literal["random", "pdebench", "hash", "file", "native", "listed"] = "random"
    """How trajectories are divided if the `path` of the task does not name separate files. `random`: drawn with `seed`.
    `pdebench`: in each file, the first trajectories are for test and the next ones for validation (counted from the end
    in a file with a group for each trajectory). `hash`: by file and number, so that a trajectory stays in its split
    when files are added. `listed`: the numbers in the file `path`. `file` and `native` are an error unless the data has
    separate files: `file` requires a `path` with `train` and `test`, `native` a folder with `train`, `valid` and
    `test`."""

    val: OpenFraction = 0.1
    """Share of the trajectories for validation; with separate files and no `val` file, share of the training files."""

    test: OpenFraction = 0.1
    """Share of the trajectories for test; unused if the files contain a test set."""

    seed: int = 0
    """Random seed of the division, independent of the run's `seed`."""

    path: str | None = None
    """JSON file with the trajectory numbers of each split, for `listed`; every run writes one, `split.json`."""

    @model_validator(mode="after")
    def _check_path(self) -> SplitConfig:
        if (self.method == "listed") != (self.path is not None):
            raise ValueError(
                "`method: listed` requires `path`, the JSON file of a split, and no other method accepts it"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoaderConfig:
    """Background reading of batches."""

    threads: Count = 1
    """Threads that read batches ahead; with 0, each batch is read in the main thread at its step."""

    buffer: Positive = 4
    """Batches that are read ahead. Small batches are read in groups of up to 32 batches and 1 MiB, one group for each
    thread."""

    memory_gib: Weight = 4.0
    """Memory for data in GiB, shared by all tasks. A task whose files together fit is kept in memory; a larger one is
    read from its files batch by batch."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixingConfig:
    """How training steps are divided among several tasks.

    Each step takes its windows from one task, which is drawn with `seed` and is the same on every host.
    """

    method: Literal["uniform", "proportional", "temperature", "weights"] = "uniform"
    """Share of the steps of each task: `uniform`, equal; `proportional` to its number n of training trajectories;
    `temperature`, proportional to n^(1 / temperature); `weights`, proportional to `weights`."""

    temperature: PositiveFloat | None = None
    """Temperature of `temperature`: 1 is proportional, a large value is nearly uniform."""

    weights: dict[str, PositiveFloat] = field(default_factory=dict)
    """A positive number for each task name, for `weights`, such as `{burgers1d: 3, advection1d: 1}`."""

    @model_validator(mode="after")
    def _check_method_parameters(self) -> MixingConfig:
        if (self.method == "temperature") != (self.temperature is not None):
            raise ValueError("`method: temperature` requires `temperature`, and no other method accepts it")
        if (self.method == "weights") != bool(self.weights):
            raise ValueError(
                "`method: weights` requires `weights`, a number for each task, and no other method accepts it"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """The tasks, and how windows are drawn from their trajectories.

    A window consists of `context` frames, which are the input, and the frames after them that the loss uses.
    """

    tasks: tuple[TaskConfig, ...]
    """List of tasks, all of one kind; one model is trained on all of them."""

    mixing: MixingConfig = field(default_factory=MixingConfig)
    root: str = "data"
    """Folder of generated data."""

    context: Positive = 1
    """Frames that are the input of a time step."""

    windows_per_trajectory: Positive = 8
    """Windows that are drawn from each training trajectory in an epoch."""

    change_sampling: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the windows whose first frame is drawn in proportion to the mean relative change of the field there,
    which favours the early, rough frames of a decaying field; the other windows are drawn uniformly."""

    augment: bool = True
    """Shift windows along periodic axes and apply the declared symmetries at random."""

    normalize: Literal["zscore", "rms", "none"] = "zscore"
    """Normalization of fields by statistics of the training split: `zscore` by mean and standard deviation, `rms` by
    the root mean square alone, `none` not at all."""

    source: Literal["fields", "latents"] = "fields"
    """Input of operator training: `fields`, encoded in every step, or `latents`, encoded once by
    [`ups-jax encode`](latents.md). With `latents` the codec is frozen; other stages still read fields."""

    latents: str | None = None
    """Folder that `ups-jax encode` wrote, for `source: latents`."""

    split: SplitConfig = field(default_factory=SplitConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)

    @model_validator(mode="after")
    def _check_tasks_and_source(self) -> DataConfig:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(
                "two tasks have the same name; give each task its own `name` and, if it is not built in, a `path`"
            )
        if (self.source == "latents") != (self.latents is not None):
            raise ValueError(
                f"`source: latents` requires `latents`, the folder that `{command('encode')}` wrote; "
                "`source: fields` does not accept it"
            )
        kinds = {task.kind for task in self.tasks}
        if len(kinds) > 1:
            raise ValueError(
                "transient and steady tasks are mixed; keep the tasks of one kind, and train the others in another run"
            )
        return self
