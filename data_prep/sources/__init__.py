"""Sources of repositories: folders, git checkouts, installed packages, parquet rows in The Stack v2 schema."""
