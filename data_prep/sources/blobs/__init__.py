"""The blob store: file bodies by SHA-1 in large pack files."""
