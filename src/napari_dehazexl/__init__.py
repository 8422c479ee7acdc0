"""napari plugin of DehazeXL: a thin layer over the `dehazexl` engine."""
