"""The passes over an image: encode, fuse, decode."""
