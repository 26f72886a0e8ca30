"""The models of the comparison: how each is built, and what it changes in a task's configuration.

Swept on the validation split, one seed and one short run each (see BUILD_NOTES.md, "Peers"), on `burgers1d`:
rate and width of the FNOs, modes of two and the batch of one of them, rate, width and blocks of the dilated net, rates
of the PDE-Transformer cores; on `darcy2d`: rates, and the size of the FNO in our recipe, which the others took over;
on `ns2d`: rates of all, sizes of the FNOs and of the dilated net, the batch of the FNO in our recipe. Not swept: all
else, such as the sizes of the PDE-Transformer cores. The other tasks of a group have what these have.
Everything else of the recipe is whatever the task's configuration says, which was chosen with `ours` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import flax.linen as nn

from ups_jax.config import Config
from ups_jax.core.task import Task

Numbers = dict[str, Any]
# A task's number of dimensions, or "steady".
Group = int | str


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One model. `trained_by` names the trainer; `sizes` and `overrides` are by the group of the task, see `Group`.

    `net` builds the network that a field simulator or solver wraps; without one the library's own model is built.
    A group that `overrides` lacks has no such model.
    """

    trained_by: Literal["library", "torch", "nothing"] = "library"
    net: Callable[[Task, Numbers], nn.Module] | None = None
    sizes: dict[Group, Numbers]
    overrides: dict[Group, tuple[str, ...]]
    packages: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """The packages that this model needs and that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]

    @property
    def has_tokens(self) -> bool:
        """Is it one of the library's models, which can roll out in the latent space?"""
        return self.trained_by == "library" and self.net is None


def build(peer: Peer, cfg: Config, task: Task, stage: str, group: Group) -> Any:
    """The model that the library trains in a stage."""
    from ups_jax.training.build import build_model

    if peer.net is None:
        return build_model(cfg, task, stage)
    from comparison.field_simulator import FieldSimulator
    from comparison.field_solver import FieldSolver

    net = peer.net(task, peer.sizes[group])
    if task.kind == "steady":
        return FieldSolver(task, cfg.latent, cfg.operator, net=net)
    return FieldSimulator(task, cfg.latent, cfg.operator, cfg.data.context, net=net)


# The best or next to it for most of them; the FNOs on planes take twice as much.
_RATE = "optimizer.lr=1e-2"
_TWICE = "optimizer.lr=2e-2"


def _fno(task: Task, sizes: Numbers) -> nn.Module:
    from comparison.fno import FNO

    # A field solver gives positions itself, in the domain's coordinates.
    grid = task.kind == "transient"
    return FNO(channels=len(task.channels), periodic=task.periodic, grid=grid, **sizes)


def _dilated(task: Task, sizes: Numbers) -> nn.Module:
    from comparison.dilated import DilatedNet

    return DilatedNet(channels=len(task.channels), periodic=task.periodic, **sizes)


def _all(*overrides: str) -> dict[Group, tuple[str, ...]]:
    return {1: overrides, 2: overrides, "steady": overrides}


# In one dimension batches of 8 suit the FNOs better than the configurations' 16.
_FNO_RECIPE = _all(_RATE) | {1: (_RATE, "training.batch_size=8"), 2: (_TWICE,)}
_NONE: dict[Group, Any] = {1: {}, 2: {}, "steady": {}}

MODELS = {
    "persistence": Peer(trained_by="nothing", sizes=_NONE, overrides={1: (), 2: ()}),
    "mean_field": Peer(trained_by="nothing", sizes=_NONE, overrides={"steady": ()}),
    "ours": Peer(sizes=_NONE, overrides=_all()),
    "fno_package": Peer(
        trained_by="torch",
        sizes={
            1: {"width": 32, "modes": 17, "depth": 4},
            2: {"width": 20, "modes": 13, "depth": 4},
            "steady": {"width": 24, "modes": 5, "depth": 4},
        },
        overrides=_all(_RATE) | {2: (_TWICE,)},
        packages=("torch", "neuralop"),
    ),
    "fno_recipe": Peer(
        net=_fno,
        sizes={1: {"width": 32, "modes": 33}, 2: {"width": 20, "modes": 13}, "steady": {"width": 24, "modes": 5}},
        overrides=_FNO_RECIPE,
    ),
    "fno_conv_recipe": Peer(
        net=_fno,
        sizes={
            1: {"width": 24, "modes": 33, "taps": 5},
            2: {"width": 14, "modes": 9, "taps": 3},
            "steady": {"width": 24, "modes": 5, "taps": 3},
        },
        overrides=_FNO_RECIPE,
    ),
    "dilated_recipe": Peer(
        net=_dilated,
        sizes={1: {"width": 24, "blocks": 2}, 2: {"width": 16, "blocks": 2}, "steady": {"width": 16, "blocks": 1}},
        overrides=_all(_RATE),
    ),
    "pdet_stack": Peer(
        sizes=_NONE,
        overrides=_all("operator.architecture_type=pdet_stack", _RATE)
        | {1: ("operator.architecture_type=pdet_stack", _TWICE)},
    ),
    "pdet_unet": Peer(
        sizes=_NONE,
        overrides=_all("operator.architecture_type=pdet_unet", _RATE)
        | {2: ("operator.architecture_type=pdet_unet", "optimizer.lr=3e-3")},
    ),
}
