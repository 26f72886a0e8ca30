"""Data converted to ArrayRecord shards: what a folder of them is, how it is written, checked and turned back."""
