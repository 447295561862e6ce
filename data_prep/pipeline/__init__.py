"""One task: repositories in, a shard out."""
