"""Scores of every exit by task, the baselines beside them, and the report that joins them with a pre-training run."""
