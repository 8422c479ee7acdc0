"""File formats: a reader and a writer for each."""
