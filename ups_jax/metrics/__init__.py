"""Metrics of decoded physical fields and their aggregation over trajectories, as pure functions."""
