"""The parts of `benchmarks/accuracy.py`: tasks, models, one row's training, the store of rows, the table."""
