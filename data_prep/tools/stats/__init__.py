"""Statistics of a data set, as tables, a page or a picture."""
