"""Validation, training, evaluation, gates and promotion to champion as one resumable pipeline."""
