"""Starting things: the command line, thread counts, preflight."""
