"""A converted checkpoint: the folder that is exported, opened and fine-tuned."""
