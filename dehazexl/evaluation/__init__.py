"""Evaluation with and without reference images."""
