"""Synthesis: haze for training, made on the device that trains."""
