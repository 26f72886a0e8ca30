"""Keys of the original system (the Universal Physics Stack) that are refused here, and what to write instead.

The replacement is the end of an error message; docs/config.md lists all of them. Names in backticks are keys of this
system, their values, or options of a command.
"""

from __future__ import annotations

import re

from ups_jax.core.commands import command

_XLA = "XLA does this automatically; leave it out"
_TORCH = "it belongs to PyTorch; leave it out"
_CACHE = f"write `data.source: latents` and `data.latents`, the folder that {command('encode')} writes"
_UNREAD = "the original system never used it; leave it out"
_TASK = "describe the task in `data.tasks`"
_CHANNELS = "write `channels` in an entry of `data.tasks`"
_NO_DROPOUT = "there is no dropout; write `training.input_noise`, or leave it out"

FORMER: dict[str, str] = {
    "benchmark": f"{_XLA}, or set `deterministic: true` for reproducible kernels",
    "precision": "write `training.precision`",
    "checkpoint.dir": "checkpoints are in the run directory: set `--run-dir`, or `runs` for the folder of all runs",
    "latent.tokens": "their number follows from the grid and `latent.patch_size`",
    "operator.pdet.input_dim": "a token's width follows from `latent.dim` and `latent.patch_size`; leave it out",
    "operator.pdet.drop_path": _NO_DROPOUT,
    "operator.pdet.dropout": _NO_DROPOUT,
    "diffusion.latent_dim": _UNREAD,
    "diffusion.num_layers": "write `diffusion.depth`",
    "diffusion.time_embed_dim": _UNREAD,
    "diffusion.dropout": _UNREAD,
    "ttc": "test-time conditioning is not implemented; leave it out",
    "data.task": _TASK,
    "data.kind": "the file determines whether its data is on a grid or at points; leave it out",
    "data.path": "write `path` in an entry of `data.tasks`",
    "data.group": "all groups of a file are read; leave it out",
    "data.split": "set the shares, such as `data.split.val`; the command evaluate takes `--split`",
    "data.field_name": _CHANNELS,
    "data.field_channels": _CHANNELS,
    "data.patch_size": "write `latent.patch_size`",
    "data.hidden_dim": "write `latent.dim`",
    "data.message_passing_steps": "write `latent.rounds`, and `latent.neighbours` for the neighbours of a point",
    "data.supernodes": "write `latent.nodes`",
    "data.use_coords": "positions are always used, relative to each other and to the walls; leave it out",
    "data.download": "fetch the files yourself and give their `path` in an entry of `data.tasks`",
    "data.task_sampling": "write `data.mixing`, such as {method: uniform}",
    "training.num_workers": "write `data.loader.threads`",
    "training.prefetch_factor": "write `data.loader.buffer`",
    "training.pin_memory": _TORCH,
    "training.persistent_workers": _TORCH,
    "training.use_parallel_encoding": f"{command('encode')} encodes in batches; leave it out",
    "training.use_preloaded_cache": "files up to `data.loader.memory_gib` are kept in memory",
    "training.latent_cache_dir": _CACHE,
    "training.latent_cache_dtype": f"give {command('encode')} the option `--dtype`",
    "training.cache_dir": _CACHE,
    "training.seed": "write `seed`, the seed of every random stream",
    "training.dt": "the time step is read from the data; leave it out",
    "training.tau": "samples end without noise: write `diffusion.num_steps`",
    "training.distill_micro_batch": "write `stages.consistency_distill.batch_size`",
    "training.distill_target_loss": "write `stages.consistency_distill.target_loss`",
    "training.amp": "write `training.precision: bf16`",
    "training.amp_dtype": "write `training.precision: bf16`",
    "training.compile_mode": f"{_XLA}, or set `training.compile: false` to debug",
    "training.use_inverse_losses": "give `training.lambda_inv_enc` or `training.lambda_inv_dec` a weight",
    "training.inverse_loss_frequency": "scale `training.lambda_inv_enc` and `training.lambda_inv_dec` instead",
    "training.query_sampling.curriculum": _UNREAD,
    "training.checkpoint_interval": "write `checkpoint.every_seconds`, or `training.eval_every` in epochs",
    "training.log_path": "a run logs to metrics.jsonl in its own directory; leave it out",
    "training.num_gpus": "all devices are used; set CUDA_VISIBLE_DEVICES for fewer",
    "training.use_fsdp2": _TORCH,
    "training.cpu_offload_optimizer": _TORCH,
    "training.tune_batch_size": "the micro-batch is halved automatically when memory runs out; leave it out",
    "training.tune_lr": "give `optimizer.lr`",
    "training.lightning_profile": f"run {command('profile')}",
    "training.dynamo_suppress_errors": _TORCH,
    "training.torch_inductor_disable_cudagraphs": _TORCH,
    "stages.consistency_distill.compile": "write `training.compile`, which holds for all stages",
    "optimizer.muon_backend": "there is one implementation, jit-compiled; leave it out",
    "optimizer.scheduler": "write `scheduler`, a section beside `optimizer`",
    "scheduler.warmup_steps_ratio": "write `scheduler.warmup`",
    "scheduler.mode": "validation errors are minimised; leave it out",
    "scheduler.threshold_mode": "the threshold is relative; leave it out",
    "scheduler.cooldown": "every evaluation counts; leave it out",
    "scheduler.eps": "no reduction is skipped; write `scheduler.min_lr` for the smallest rate",
    "evaluation.split": f"give {command('evaluate')} the option `--split`",
    "logging.wandb.run_name": "runs are named after the run directory: give `--run-dir`",
    "logging.wandb.group": "runs are grouped by the run directory: give `--run-dir`",
    "logging.wandb.notes": "leave it out, or write `logging.wandb.tags`",
}


def legacy_key_hint(key_path: str) -> str | None:
    """Return what to write instead of a refused key or section, or None if the dotted key is not refused."""
    # Stages have the sections of the top level: `stages.operator.optimizer.x` is `optimizer.x`.
    return FORMER.get(re.sub(r"^stages\.\w+\.(optimizer|scheduler)\b", r"\1", key_path))
