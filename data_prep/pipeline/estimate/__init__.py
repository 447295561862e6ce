"""What a data set will hold and cost: `mose-data pack --dry-run`."""
