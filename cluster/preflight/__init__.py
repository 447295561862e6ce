"""Measures every node of a job before training: what is missing, wrong or slow is named before it costs hours."""
