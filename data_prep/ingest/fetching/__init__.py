"""File bodies from Software Heritage to the local store."""
