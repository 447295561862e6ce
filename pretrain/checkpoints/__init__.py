"""What a run keeps, and what others open."""
