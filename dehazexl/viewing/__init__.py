"""What a viewer shows while an image is dehazed."""
