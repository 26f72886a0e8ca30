"""Keys of the original system that are refused, each with what to write instead: the end of an error message.

docs/config.md lists them. Names in backticks are keys of this system, their values, or options of a script.
"""

from __future__ import annotations

import re

from ups_jax.core.commands import command

_XLA = "XLA does this by itself; leave it out"
_TORCH = "it belongs to PyTorch; leave it out"
_CACHE = f"write `data.source: latents` and `data.latents`, the folder that {command('encode')} writes"
_UNREAD = "nothing ever read it; leave it out"
_TASK = "describe the task in `data.tasks`"
_CHANNELS = "write `channels` in an entry of `data.tasks`"
_NO_DROPOUT = "the blocks drop nothing; write `training.input_noise`, or leave it out"

FORMER: dict[str, str] = {
    "benchmark": f"{_XLA}, or set `deterministic: true` for reproducible kernels",
    "precision": "write `training.precision`",
    "checkpoint.dir": "a run keeps its checkpoints: give `--run-dir`, or `runs` for the folder of all runs",
    "latent.tokens": "their number follows from the grid and `latent.patch_size`",
    "operator.pdet.input_dim": "a token's width follows from `latent.dim` and `latent.patch_size`; leave it out",
    "operator.pdet.drop_path": _NO_DROPOUT,
    "operator.pdet.dropout": _NO_DROPOUT,
    "diffusion.latent_dim": _UNREAD,
    "diffusion.num_layers": "write `diffusion.depth`",
    "diffusion.time_embed_dim": _UNREAD,
    "diffusion.dropout": _UNREAD,
    "ttc": "not yet: comes with test-time conditioning, after ensembles",
    "data.task": _TASK,
    "data.kind": "a file says itself whether it is of a grid or of points; leave it out",
    "data.path": "write `path` in an entry of `data.tasks`",
    "data.group": "a hierarchy is read as a whole; leave it out",
    "data.split": "set the shares, such as `data.split.val`; the command evaluate takes `--split`",
    "data.field_name": _CHANNELS,
    "data.field_channels": _CHANNELS,
    "data.patch_size": "write `latent.patch_size`",
    "data.hidden_dim": "write `latent.dim`",
    "data.message_passing_steps": "write `latent.rounds`, and `latent.neighbours` for how many points a point hears",
    "data.supernodes": "write `latent.nodes`",
    "data.use_coords": "places always enter, relative to each other and to the walls; leave it out",
    "data.download": "fetch the files yourself and give their `path` in an entry of `data.tasks`",
    "data.task_sampling": "write `data.mixing`, such as {method: uniform}",
    "training.num_workers": "write `data.loader.threads`",
    "training.prefetch_factor": "write `data.loader.buffer`",
    "training.pin_memory": _TORCH,
    "training.persistent_workers": _TORCH,
    "training.use_parallel_encoding": f"{command('encode')} encodes in batches; leave it out",
    "training.use_preloaded_cache": "files up to `data.loader.memory_gib` are held in memory",
    "training.latent_cache_dir": _CACHE,
    "training.latent_cache_dtype": f"give {command('encode')} the option `--dtype`",
    "training.cache_dir": _CACHE,
    "training.seed": "write `seed`, of which every random stream is made",
    "training.dt": "the time step is the data's own; leave it out",
    "training.tau": "samples take all of the noise out: write `diffusion.num_steps`",
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
    "training.num_gpus": "all devices that jax finds are used; set CUDA_VISIBLE_DEVICES for fewer",
    "training.use_fsdp2": _TORCH,
    "training.cpu_offload_optimizer": _TORCH,
    "training.tune_batch_size": "when memory runs out the micro-batch is halved by itself; leave it out",
    "training.tune_lr": "give `optimizer.lr`",
    "training.lightning_profile": f"run {command('profile')}",
    "training.dynamo_suppress_errors": _TORCH,
    "training.torch_inductor_disable_cudagraphs": _TORCH,
    "stages.consistency_distill.compile": "write `training.compile`, which is of all stages",
    "optimizer.muon_backend": "there is one implementation, jit-compiled; leave it out",
    "optimizer.scheduler": "write `scheduler`, a section beside `optimizer`",
    "scheduler.warmup_steps_ratio": "write `scheduler.warmup`",
    "scheduler.mode": "validation errors are minimised; leave it out",
    "scheduler.threshold_mode": "the threshold is relative; leave it out",
    "scheduler.cooldown": "every evaluation counts; leave it out",
    "scheduler.eps": "every reduction is made; write `scheduler.min_lr` for where they end",
    "evaluation.split": f"give {command('evaluate')} the option `--split`",
    "logging.wandb.run_name": "runs are named after the run directory: give `--run-dir`",
    "logging.wandb.group": "runs are grouped by the run directory: give `--run-dir`",
    "logging.wandb.notes": "leave it out, or write `logging.wandb.tags`",
}


def hint_for(path: str) -> str | None:
    """Return what to write instead of a refused key, or None for any other path; a refused section is such a key."""
    # A stage takes the sections of the top level: `stages.operator.optimizer.x` is `optimizer.x`.
    return FORMER.get(re.sub(r"^stages\.\w+\.(optimizer|scheduler)\b", r"\1", path))
