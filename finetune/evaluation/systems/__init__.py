"""The models of a benchmark behind one interface: ours, sentence-transformers, embedding servers, and lexical search."""
