"""Run directories: the record of a run (run.json), its checkpoints and the checksums of their files."""
