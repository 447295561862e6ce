"""Removes listed files from a finished data set."""
