"""Images that are dehazed while they are viewed, for any viewer."""
