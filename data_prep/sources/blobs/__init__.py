"""The local store of file bodies."""
