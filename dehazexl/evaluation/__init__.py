"""Evaluation: scores with a truth to compare with, and without."""
