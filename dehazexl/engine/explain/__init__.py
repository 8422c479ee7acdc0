"""Attribution: what parts of an image a network used for a window of its output."""
