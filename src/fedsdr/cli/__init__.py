"""The command line: thin, and the only place where errors become exit codes."""
