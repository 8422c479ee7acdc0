"""Files: one module for each format, its reader and its writer."""
