"""Evaluation of trained models: `evaluate` computes metrics, `result` defines the results, `plots` draws them."""
