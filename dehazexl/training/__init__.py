"""Training of networks from clear images or pairs of images."""
