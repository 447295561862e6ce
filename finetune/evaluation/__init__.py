"""Retrieval scores of every exit, the baselines beside them, and the report that joins them with a pre-training run."""
