"""Contrastive fine-tuning for text-to-code and code-to-code search."""
