"""Haze and scenes that are made."""
