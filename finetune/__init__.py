"""Converted checkpoints in, retrieval encoders and their scores out."""
