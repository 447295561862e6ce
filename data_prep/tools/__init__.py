"""Commands on a finished data set."""
