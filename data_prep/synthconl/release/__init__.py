"""Seeds and their translations to one folder: parquet in the released schema, statistics, page and data card."""
