"""The arithmetic of near-duplicates: pure functions from texts to shingles, signatures, bands and groups."""
