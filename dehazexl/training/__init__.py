"""Training: images in, weights out."""
