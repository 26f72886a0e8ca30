"""Keys of the original system that mean nothing here, each with what to write instead: the end of an error's line.

`docs/config.md` lists them beside the keys that were kept.
"""

from __future__ import annotations

import re

_XLA = "XLA does this by itself; leave it out"
_TORCH = "it belongs to PyTorch; leave it out"
_CACHE = "fields are encoded while training, as the encoder is trained too; leave it out"
_TASK = "describe the task in `data.tasks`"

FORMER: dict[str, str] = {
    "benchmark": f"{_XLA}, or set `deterministic: true` for reproducible kernels",
    "precision": "write `training.precision`",
    "checkpoint.dir": "a run keeps its checkpoints: give `--run-dir`, or `runs` for the folder of all runs",
    "latent.tokens": "their number follows from the grid and `latent.patch_size`",
    "data.task": _TASK,
    "data.kind": "write `kind` in an entry of `data.tasks`",
    "data.path": "write `path` in an entry of `data.tasks`",
    "data.group": "write `path` in an entry of `data.tasks`",
    "data.field_name": "write `channels` in an entry of `data.tasks`",
    "data.field_channels": "write `channels` in an entry of `data.tasks`",
    "data.patch_size": "write `latent.patch_size`",
    "data.download": "fetch the files yourself and give their `path` in an entry of `data.tasks`",
    "training.num_workers": "write `data.loader.threads`",
    "training.prefetch_factor": "write `data.loader.buffer`",
    "training.pin_memory": _TORCH,
    "training.persistent_workers": _TORCH,
    "training.use_parallel_encoding": _CACHE,
    "training.use_preloaded_cache": "files up to `data.loader.memory_gib` are held in memory",
    "training.latent_cache_dir": _CACHE,
    "training.latent_cache_dtype": _CACHE,
    "training.cache_dir": _CACHE,
    "training.seed": "write `seed`, of which every random stream is made",
    "training.dt": "the time step is the data's own",
    "training.amp": "write `training.precision: bf16`",
    "training.amp_dtype": "write `training.precision: bf16`",
    "training.compile_mode": f"{_XLA}, or set `training.compile: false` to debug",
    "training.use_inverse_losses": "give `training.lambda_inv_enc` or `training.lambda_inv_dec` a weight",
    "training.inverse_loss_frequency": "scale `training.lambda_inv_enc` and `training.lambda_inv_dec` instead",
    "training.query_sampling.curriculum": "nothing ever read it; leave it out",
    "training.checkpoint_interval": "write `checkpoint.every_seconds`, or `training.eval_every` in epochs",
    "training.log_path": "a run logs to metrics.jsonl in its own directory; leave it out",
    "training.num_gpus": "all devices that jax finds are used; set CUDA_VISIBLE_DEVICES for fewer",
    "training.use_fsdp2": _TORCH,
    "training.cpu_offload_optimizer": _TORCH,
    "training.tune_batch_size": "when memory runs out the micro-batch is halved by itself; leave it out",
    "training.tune_lr": "give `optimizer.lr`",
    "training.lightning_profile": "run scripts/profile_step.py",
    "training.dynamo_suppress_errors": _TORCH,
    "training.torch_inductor_disable_cudagraphs": _TORCH,
    "optimizer.muon_backend": "there is one implementation, jit-compiled; leave it out",
    "scheduler.warmup_steps_ratio": "write `scheduler.warmup`",
    "scheduler.mode": "validation errors are minimised; leave it out",
    "scheduler.threshold_mode": "the threshold is relative; leave it out",
}


def mend_of(path: str) -> str | None:
    """What to write instead of a former key, or None; a key inside a dropped section has the section's."""
    # A stage takes the sections of the top level: `stages.operator.optimizer.x` is `optimizer.x`.
    path = re.sub(r"^stages\.\w+\.(optimizer|scheduler)\b", r"\1", path)
    # The original nests the schedule in the optimizer.
    path = re.sub(r"^optimizer\.scheduler\b\.?", "scheduler.", path).rstrip(".")
    return FORMER.get(path)
