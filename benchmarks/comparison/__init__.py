"""What `benchmarks/accuracy.py` is made of: tasks, models, one row's training, the store of rows, the table."""
