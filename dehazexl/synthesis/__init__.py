"""Synthetic haze and scenes."""
