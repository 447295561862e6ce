"""Evaluation tasks: one file per task, and one line per task in `registry.py`."""
