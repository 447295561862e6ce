"""The module that DeepSpeed wraps, and its loss."""
