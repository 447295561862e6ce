"""Runs one task: repositories in, shards out."""
