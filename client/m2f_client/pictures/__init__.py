"""Pictures that are read in parts: of any size, from memory or from a file."""
