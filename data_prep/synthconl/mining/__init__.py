"""Documented functions of repositories and of CodeSearchNet's files, filtered by CodeSearchNet's rules."""
