"""The text of docs/config.md, from the schema and from the keys of the original system.

`python tools/config_reference.py > docs/config.md` writes the page. The meaning of a key is the string below its
field; the text above a table is the docstring of its section.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import sys
import typing
from collections.abc import Iterator

from ups_jax.config import Config, StageConfig
from ups_jax.config.legacy_keys import FORMER

_INTRODUCTION = """\
# Configuration

<!-- Written by `python tools/config_reference.py > docs/config.md`. Edit `ups_jax/config/schema/` instead. -->

A configuration is a YAML file, such as those in `configs/`, and overrides on the command line, `optimizer.lr=1e-3`.
A key that a file leaves out has the default below; a key that is not below is an error. Part 1 lists the keys. Part 2
lists what differs from the original system, the Universal Physics Stack (UPS), which `ups_jax` re-implements.

- `include: FILE` or `include: [FILE, ...]` includes other files, relative to the file that contains it. The keys of
  that file take precedence. The tag `!include` is refused.
- A list such as `data.tasks` replaces the included list. An entry with the `name` of an included one keeps the keys
  that it does not set. Included entries that are not named again are dropped.
- A dotted key enters a list by name or position: `data.tasks.burgers1d.path=F`, `data.tasks.0.path=F`.
- YAML is read by the rules of version 1.2: `1e-3` is a number, `on` and `no` are strings.

# 1. Keys

`required` marks a key without a default. Lengths in time are epochs, which may be fractions, unless a name ends in
`_steps` (optimizer steps) or `_seconds`. A length is set in epochs or in steps, not in both. An epoch is
`data.windows_per_trajectory` windows of every training trajectory. An optimizer step takes `batch_size * accum_steps`
windows. `<name>` and `<n>` stand for the name and the position of an entry in a list.
"""
_REFUSED_TABLE = """\
# 2. Differences from the original system

A key of the original system that is not in these tables has the same meaning here and the default of part 1.

## Options of the pipeline

The options of `ups-jax pipeline` have the names of the original system, except for these:

| original option | here |
|---|---|
| `--strict-exit` | a refusal always has exit code 6 |
| `--eval-tau` | none: samples have no noise at the end |
| `--copy-checkpoints` | none: a run keeps its checkpoints in `train/` |
| `--run-dir` | `--runs-root` |
| `--leaderboard-wandb*`, `--wandb-*` other than the mode | `logging.wandb` of the configuration |
| `--skip-comparison`, `--analysis-max-rows` | `ups-jax leaderboard --compare` |

## Refused keys

Each of these keys is an error whose message ends with the text of the second column. A section is refused with all of
its keys; `data.split` is refused only as a single value. The keys of `optimizer` and `scheduler` are refused in the
sections of a stage as well.

| original key | what to write |
|---|---|
"""
_CHANGED_TABLE = """
## Keys with another meaning or default

The third column describes this system, and the original system after the word "Original".

| key | default | difference |
|---|---|---|
"""

# Keys of the original system with another meaning or default here.
_CHANGED: dict[str, str] = {
    "seed": "Does not seed the split, which has `data.split.seed`.",
    "data.root": "Folder of generated data only; data of other origin has a `path`.",
    "latent.dim": "Learned features, in addition to the patch that a token carries. Original: 32.",
    "operator.architecture_type": "Original: `pdet_unet`, which exists here as well.",
    "operator.pdet.hidden_dim": "Original: twice `latent.dim`.",
    "operator.pdet.mlp_ratio": "Original: 4 for `pdet_stack`.",
    "operator.pdet.qk_norm": "Applies to channel-separated attention as well.",
    "diffusion.hidden_dim": "The operator's width. Original: twice `latent.dim`.",
    "optimizer.name": "Original: `adam`, which exists here as well.",
    "optimizer.weight_decay": "Does not apply to biases and norm scales.",
    "optimizer.betas": "Used by `adamw` as well.",
    "optimizer.eps": "Used by `adamw` as well.",
    "scheduler.name": "Original: no schedule, which is `constant` here.",
    "scheduler.t_max": "Original: 10, and the rate rises again after it.",
    "scheduler.step_size": "Original: 1.",
    "scheduler.gamma": "Original: 0.5.",
    "scheduler.factor": "Original: 0.5.",
    "scheduler.patience": "Counts the validation metric. Original: 3, of the training loss.",
    "scheduler.threshold": "Original: 0.001.",
    "training.batch_size": "Counts windows. Original: 16 whole trajectories.",
    "training.accum_steps": "Used by every stage.",
    "training.patience": "Counts the validation metric. Original: the training loss.",
    "training.grad_clip": "Original: `null`.",
    "training.ema_decay": "`null` is an average over a growing window, which evaluations use. Original: no average.",
    "training.rollout_horizon": "Every loss term scores all steps; `lambda_rollout` adds a term of the later ones.",
    "training.compile": "Original: `false`.",
    "training.lambda_relative": "The main loss term. Original: 0, and without effect on the operator.",
    "training.lambda_forward": "Of decoded fields, in addition to `lambda_relative`. Original: 1, of latent tokens.",
    "training.lambda_rollout": "Of decoded fields.",
    "training.lambda_spectral": "One formula in all stages, in float32, along the spatial axes.",
    "training.lambda_inv_enc": "The present codec carries the field, so that the term is 0 and a weight is refused.",
    "training.lambda_inv_dec": "The present codec carries the field, so that the term is 0 and a weight is refused.",
    "training.inverse_loss_warmup_epochs": "May be a fraction.",
    "training.query_sampling.strategy": "`stratified` draws no point twice.",
    "training.physics_priors.enabled": "Original: `false`; the weights are 0 in both.",
    "training.physics_priors.lambda_divergence": "Of the channels of `velocity`, with the grid's spacing.",
    "training.physics_priors.lambda_boundary": "On walls only; a periodic axis has none.",
    "training.physics_priors.lambda_positivity": "Of `positivity_channels`, whatever their names.",
    "training.physics_priors.bc_type": "Accepts `front` and `back` as well.",
    "training.tau_distribution.type": "Any other name is an error.",
    "training.log_per_task_metrics": "The loss of each task. Original: the loss of the whole batch.",
    "stages.<stage>.epochs": "Original: 1 for a stage that is called by name.",
    "stages.<stage>.grad_clip": "Used by `steady_prior` as well.",
    "stages.<stage>.ema_decay": "Used by `steady_prior` as well.",
    "stages.consistency_distill.target_loss": "Of the validation distance to the teacher. Original: the training loss.",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the configuration: its path, default as YAML text, and meaning."""

    path: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the configuration: its path, its docstring, and its keys without those of its subsections."""

    path: str
    text: str
    keys: list[Key]


def page() -> str:
    """Return the text of docs/config.md.

    Raises:
        ValueError: The meaning of a key is not a sentence, or does not name each of the key's choices.
        KeyError: `_CHANGED` has a key that is not in the schema.
    """
    lines = [_INTRODUCTION]
    defaults: dict[str, str] = {}
    for section in sections():
        level = "##" if "." not in section.path else "###"
        lines += [f"{level} `{section.path}`" if section.path else "## Run", "", section.text, ""]
        if section.keys:
            lines += ["| key | default | meaning |", "|---|---|---|"]
            lines += [f"| `{key.path}` | {key.default} | {key.meaning} |" for key in section.keys]
            lines += [""]
        defaults |= {key.path: key.default for key in section.keys}
    refused = [f"| `{path}` | {hint} |" for path, hint in FORMER.items()]
    changed = [f"| `{path}` | {defaults[path]} | {text} |" for path, text in _CHANGED.items()]
    return "\n".join([*lines, _REFUSED_TABLE + "\n".join(refused), _CHANGED_TABLE + "\n".join(changed)]) + "\n"


def sections() -> list[Section]:
    """Return the sections of the configuration in the order of the page.

    A class that several sections share is listed once, at the first of them. A derived class is listed without the keys
    that it inherits from a listed base.
    """
    listed: dict[type, Section] = {}

    def visit(schema: type, path: str) -> None:
        bases = [base for base in schema.__mro__[1:] if base in listed]
        inherited = {field.name for base in bases for field in dataclasses.fields(base)}
        section = listed[schema] = Section(path, inspect.cleandoc(schema.__doc__ or ""), [])
        hints, meanings = typing.get_type_hints(schema), _meanings(schema)
        for field in dataclasses.fields(schema):
            if field.name in inherited:
                continue
            hint, place = hints[field.name], f"{path}.{field.name}".lstrip(".")
            if not dataclasses.is_dataclass(hint):
                _check(place, hint, meanings.get(field.name, ""))
                section.keys.append(Key(place, _default(field), meanings[field.name]))
            for kind in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(kind) and kind not in listed:
                    visit(typing.cast(type, kind), _subsection(place, hint, kind))

    visit(Config, "")
    return list(listed.values())


def _check(path: str, annotation: object, meaning: str) -> None:
    """Check that a meaning is a sentence that names each choice of the annotation."""
    missing = [choice for choice in _choices(annotation) if f"`{choice}`" not in meaning]
    if missing or not meaning.endswith("."):
        raise ValueError(f"`{path}`: the string below its field must be a sentence that names its choices {missing}")


def _choices(annotation: object) -> Iterator[str]:
    """Yield the values of every `Literal` in an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    else:
        for argument in typing.get_args(annotation):
            yield from _choices(argument)


def _subsection(place: str, hint: object, kind: object) -> str:
    """Return the path of a section of class `kind` at a field with the annotation `hint`."""
    if kind is StageConfig:
        return "stages.<stage>"
    if typing.get_origin(hint) is tuple:
        return f"{place}.<name>" if "name" in typing.get_type_hints(kind) else f"{place}.<n>"
    return place


def _default(field: dataclasses.Field[object]) -> str:
    """Return the default of a field as YAML text in backticks, or `required`."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "required" if default is dataclasses.MISSING else "`" + json.dumps(default).replace('"', "") + "`"


def _meanings(schema: type) -> dict[str, str]:
    """Return the string below each field of a schema class, in one line; fields of base classes are included."""
    texts = {}
    for base in reversed(schema.__mro__[:-1]):
        (node,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(node, ast.ClassDef)
        for pair in itertools.pairwise(node.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    texts[name] = " ".join(text.split())
    return texts


if __name__ == "__main__":
    sys.stdout.write(page())
