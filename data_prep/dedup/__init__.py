"""Near-duplicates: found by MinHash, verified by exact Jaccard similarity, cut from a data set in restartable batch phases."""
