"""Use of a fine-tuned model: texts to vectors at any exit, the exit for a budget, and search over functions."""
