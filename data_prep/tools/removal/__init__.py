"""Listed files taken out of a finished data set."""
