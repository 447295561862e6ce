"""What the phases of a deduplication leave for each other on disk: numbers of documents, sorted pairs, texts."""
