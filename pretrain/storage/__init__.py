"""Where the rows of a run lie."""
