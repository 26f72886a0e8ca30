"""Sequences of training and evaluation."""
