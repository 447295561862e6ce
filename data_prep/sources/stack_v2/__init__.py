"""Repositories from the tables of The Stack v2."""
