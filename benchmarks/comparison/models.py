"""The models of the comparison: how each is built, and what it changes in a task's configuration.

Learning rates and sizes of the peers are the best of a few short runs on the validation split (BUILD_NOTES.md,
"Peers"); everything else of the recipe is whatever the task's configuration says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import flax.linen as nn

from ups_jax.config import Config
from ups_jax.task import Task

Numbers = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One model. `trained_by` names the trainer; `sizes` and `overrides` are by the task's number of dimensions.

    `net` builds the network that a field simulator wraps; without one the library's own simulator is built.
    """

    trained_by: Literal["library", "torch", "nothing"] = "library"
    net: Callable[[Task, Numbers], nn.Module] | None = None
    sizes: dict[int, Numbers]
    overrides: dict[int, tuple[str, ...]]
    packages: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """The packages that this model needs and that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


def build(peer: Peer, cfg: Config, task: Task) -> Any:
    """The simulator of a model that the library trains."""
    from ups_jax.training.build import build_model

    if peer.net is None:
        return build_model(cfg, task, "operator")
    from comparison.field_simulator import FieldSimulator

    net = peer.net(task, peer.sizes[len(task.shape)])
    return FieldSimulator(task, cfg.latent, cfg.operator, cfg.data.context, net=net)


def _fno(task: Task, sizes: Numbers) -> nn.Module:
    from comparison.fno import FNO

    return FNO(channels=len(task.channels), periodic=task.periodic, **sizes)


def _dilated(task: Task, sizes: Numbers) -> nn.Module:
    from comparison.dilated import DilatedNet

    return DilatedNet(channels=len(task.channels), periodic=task.periodic, **sizes)


def _recipe(lr: float) -> tuple[str, ...]:
    # A field simulator has no learned features whose consistency could be asked for.
    return ("training.lambda_latent=0", f"optimizer.lr={lr:g}")


def _both(*overrides: str) -> dict[int, tuple[str, ...]]:
    return {1: overrides, 2: overrides}


_NONE: dict[int, Any] = {1: {}, 2: {}}

MODELS = {
    "persistence": Peer(trained_by="nothing", sizes=_NONE, overrides=_both()),
    "ours": Peer(sizes=_NONE, overrides=_both()),
    "fno_package": Peer(
        trained_by="torch",
        sizes={1: {"width": 32, "modes": 33, "depth": 4}, 2: {"width": 20, "modes": 13, "depth": 4}},
        overrides=_both("optimizer.lr=1e-2"),
        packages=("torch", "neuralop"),
    ),
    "fno_recipe": Peer(
        net=_fno,
        sizes={1: {"width": 32, "modes": 33}, 2: {"width": 20, "modes": 13}},
        overrides=_both(*_recipe(1e-2)),
    ),
    "fno_conv_recipe": Peer(
        net=_fno,
        sizes={1: {"width": 32, "modes": 33, "taps": 5}, 2: {"width": 20, "modes": 13, "taps": 3}},
        overrides=_both(*_recipe(1e-2)),
    ),
    "dilated_recipe": Peer(
        net=_dilated,
        sizes={1: {"width": 32, "blocks": 2}, 2: {"width": 24, "blocks": 2}},
        overrides=_both(*_recipe(1e-2)),
    ),
    "pdet_stack": Peer(
        sizes=_NONE,
        overrides=_both("operator.architecture_type=pdet_stack", "optimizer.lr=1e-2"),
    ),
    "pdet_unet": Peer(
        sizes=_NONE,
        overrides=_both("operator.architecture_type=pdet_unet", "optimizer.lr=1e-2"),
    ),
}
