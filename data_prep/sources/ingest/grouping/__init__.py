"""Tables of files, sorted into one row per repository."""
