"""Builds (text, code, translated code) triplets as SynthCoNL was: seeds, translation, parquet with a data card."""
