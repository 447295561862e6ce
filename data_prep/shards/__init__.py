"""Reads a finished data set."""
