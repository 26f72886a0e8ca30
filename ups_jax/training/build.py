"""From configuration and data to a model, its optimizer and a fresh state."""

from __future__ import annotations

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from ups_jax import simulate
from ups_jax.config import Config
from ups_jax.data import Dataset, open_dataset
from ups_jax.errors import ConfigError
from ups_jax.losses import Batch
from ups_jax.models import Conditions, Simulator
from ups_jax.optim import build_optimizer
from ups_jax.task import Task
from ups_jax.training.plan import plan_of
from ups_jax.training.state import TrainState, state_of


def build(cfg: Config, dataset: Dataset | None = None) -> tuple[Simulator, optax.GradientTransformation]:
    """Model and optimizer of the operator stage; without `dataset` the data of the configuration is opened."""
    if dataset is None:
        simulate.prepare(cfg)
        dataset = open_dataset(cfg)
    plan = plan_of(cfg, dataset, "operator")
    return build_model(cfg, dataset.task), build_optimizer(cfg.stages.operator, plan.total_steps)


def build_model(cfg: Config, task: Task) -> Simulator:
    """The simulator of a task; ConfigError where widths do not divide."""
    if task.kind == "steady":
        raise ConfigError(f"task {task.name} is steady: it has no time to step in, and no stage for it exists yet")
    pdet = cfg.operator.pdet
    grouped = cfg.operator.architecture_type == "pdet_unet" or pdet.attention_type == "channel_separated"
    if cfg.operator.architecture_type != "spectral":
        if grouped and pdet.hidden_dim % pdet.group_size:
            raise ConfigError(
                f"operator.pdet.hidden_dim {pdet.hidden_dim} is not a multiple of group_size {pdet.group_size}"
            )
        heads_in = pdet.group_size if grouped else pdet.hidden_dim
        if heads_in % pdet.num_heads:
            raise ConfigError(
                f"operator.pdet.num_heads {pdet.num_heads} does not divide the width {heads_in} it splits"
            )
    dtype = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[cfg.training.precision]
    return Simulator(task, cfg.latent, cfg.operator, cfg.data.context, dtype)


def init_state(model: Simulator, tx: optax.GradientTransformation, batch: Batch, key: Key[Array, ""]) -> TrainState:
    """A fresh state; `batch` lends its shapes. Deterministic in `key`."""

    def fresh(key: Key[Array, ""], batch: Batch) -> TrainState:
        first = {name: jnp.asarray(values)[:1] for name, values in batch.items()}
        context = first["fields"][:, : model.context]
        cond = Conditions(dt=first["dt"], coefficients=first["cond"], mask=first["cond_mask"])
        params = model.init(stream(key, "init"), context, cond)["params"]
        return state_of(params, tx, key)

    return jax.jit(fresh)(key, batch)


def abstract_state(config: Config, task: Task) -> TrainState:
    """Shapes of the train state that the configuration makes for a task."""
    frames = config.data.context + 1
    width = len(task.coefficients)
    batch = {
        "fields": jax.ShapeDtypeStruct((1, frames, *task.shape, len(task.channels)), jnp.float32),
        "dt": jax.ShapeDtypeStruct((1,), jnp.float32),
        "cond": jax.ShapeDtypeStruct((1, width), jnp.float32),
        "cond_mask": jax.ShapeDtypeStruct((1, width), jnp.float32),
    }
    tx = build_optimizer(config.stages.operator, 1)
    return jax.eval_shape(partial(init_state, build_model(config, task), tx), batch, jax.random.key(0))


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """The named random stream of a base key."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
