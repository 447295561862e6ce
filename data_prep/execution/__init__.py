"""Many tasks, killed anywhere, run once."""
