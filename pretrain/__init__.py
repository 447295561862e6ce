"""Packed shards in, ZeRO x tensor-parallel checkpoints out."""
