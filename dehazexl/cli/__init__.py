"""The command line: one file for each command; `app` says what they are called with."""
