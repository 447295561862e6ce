"""What a file is, from its name and bytes: language, generated, vendored, documentation, encoding."""
