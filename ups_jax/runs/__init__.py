"""Run directories on disk: the record of a run, its checkpoints and their checksums."""
