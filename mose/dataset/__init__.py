"""A packed data set as it lies on disk: rows, shards, index, manifest, pairs."""
