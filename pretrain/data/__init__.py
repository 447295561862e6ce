"""Which rows a step is made of, and how they are masked."""
