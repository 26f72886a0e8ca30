"""Figures, films and the HTML report of an evaluation."""
