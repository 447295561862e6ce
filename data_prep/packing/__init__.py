"""Chunks to rows: pure functions of lengths, labels and a seed."""
