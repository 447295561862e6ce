"""Contracts shared by two stages or more, and wrong if the two differ."""
