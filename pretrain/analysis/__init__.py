"""What is computed about a run afterwards."""
