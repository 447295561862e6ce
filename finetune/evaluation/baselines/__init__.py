"""What every model is compared with on the same queries and candidates: TF-IDF, BM25, and a bag of embeddings."""
