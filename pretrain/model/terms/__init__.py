"""The terms of an exit's loss: one file declares one term, and `registry.py` lists them."""
