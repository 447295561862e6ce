"""Which files become training text."""
