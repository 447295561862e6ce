"""Filters that decide which files become training text."""
