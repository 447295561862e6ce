"""Repositories in, packed shards out; no torch."""
