"""A finished data set, read back."""
