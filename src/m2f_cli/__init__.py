"""The `m2f` command: a file for each subcommand."""
