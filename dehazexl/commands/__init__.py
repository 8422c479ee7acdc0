"""What the commands of `dehazexl` do, one file a command; `cli` says what they are called with."""
