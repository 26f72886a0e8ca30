"""Evaluation of trained predictors: `evaluate` measures, `result` is the record, `plots` and `report` show it."""
