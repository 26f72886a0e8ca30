"""The functions of `ups_jax` at which faults strike and fuzzed scripts stop, as `module:name`.

A function that is renamed is renamed here as well: `tests/reliability/test_places.py` checks that all of them exist.
"""

from __future__ import annotations

# A step's record is written, a checkpoint is saved, and the wait for it.
RECORD = "ups_jax.tracking.jsonl:JsonlWriter.scalars"
SAVE = "ups_jax.runs.checkpoint:Checkpoints.save"
WAIT_FOR_SAVE = "ups_jax.runs.checkpoint:Checkpoints.wait"
CHECKSUMS = "ups_jax.runs.checksums:write_checksums"
# Within an evaluation on the validation split.
VALIDATION = "ups_jax.trainer.loop:update_plateau"
COMPILATION = "ups_jax.trainer.oom:compile_ahead"
STAGE_END = "ups_jax.trainer.stage_run:log_end"
GRADIENTS = "ups_jax.training.step:make_gradient_fn"
# Several batches are read at once: the second argument after the data and the plan is their number.
READ_BATCHES = "ups_jax.data.batches:read_rows"
OPEN_DATA = "ups_jax.data.scan_cache:read_chunk_record"
# The flush of a file that is written beside its place.
FLUSH = "ups_jax.core.files:os.fsync"
SOLVE = "ups_jax.simulate.solvers:solve"
# A conversion: the values of a record, the flush and the rename of a shard, the notes and the manifest.
SHARD_RECORD = "ups_jax.data.shards.writer:_channel_statistics"
SHARD_FLUSH = "ups_jax.data.shards.writer:os.fsync"
SHARD_RENAME = "ups_jax.data.shards.writer:os.replace"
SHARD_NOTE = "ups_jax.data.shard_folder:write_atomically"
EVALUATION = "ups_jax.evaluation.evaluate_run:evaluate_predictor"
EVALUATION_OF_STAGE = "ups_jax.pipeline.train_all_stages:evaluate_run"
EVALUATION_RESULT = "ups_jax.evaluation.result:write_atomically"
WANDB = "ups_jax.tracking.wandb_writer:WandbWriter.__init__"

# Where a fuzzed script has accepted its input, by the name that a case has for it.
STOPS = {
    "build": "ups_jax.trainer.preflight:build_joint_model",
    "train": "ups_jax.trainer.train:TrainingRun",
    "evaluate": EVALUATION,
    "export": "ups_jax.inference.export:export_model",
    "rollout": "ups_jax.cli.predict:StateFile",
}
