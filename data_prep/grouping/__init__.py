"""Rows of any order in, parts of one row a repository out: hash-partitioned to disk within a stated bound of memory."""
