"""Runs the tasks of a data set, each once, whatever is killed."""
