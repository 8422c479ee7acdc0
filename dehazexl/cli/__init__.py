"""Command-line interface: `app` defines the commands and their options, the other modules implement them."""
