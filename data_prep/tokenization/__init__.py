"""Text to chunks of tokens."""
