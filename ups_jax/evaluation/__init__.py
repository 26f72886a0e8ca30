"""Evaluation of trained predictors: `evaluate` measures, `result` is the record, `plots` shows it."""
