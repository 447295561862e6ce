"""Draws the S-curve of the banding beside what signatures of natural texts do, as SVG.

Run `python -m docs.images.banding_curve FILE ...`. The files are parquet files of texts,
as `benchmarks.deduplication` reads them. Every pair above .4 is compared exactly.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.deduplication_parts.signatures import candidates, ours
from benchmarks.deduplication_parts.texts import natural_texts, planted_mutants, similar_pairs
from data_prep.dedup.minhash.banding import collision_probability

OUTPUT = Path(__file__).with_suffix(".svg")
LEAST, STEP = 0.4, 0.05


def main() -> None:
    """Write the picture beside this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--documents", type=int, default=2000)
    options = parser.parse_args()
    texts = natural_texts(options.files, options.documents, 0)
    texts += planted_mutants(texts, len(texts), 0)
    pairs = similar_pairs(texts, LEAST)
    found = candidates(ours(texts, "one_permutation"))
    similarities = np.array(list(pairs.values()))
    is_found = np.array([pair in found for pair in pairs])
    plt.rcParams["svg.hashsalt"] = "banding"
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    grid = np.linspace(0, 1, 201)
    for bands, rows, style in ((32, 8, "-"), (25, 10, "--"), (16, 16, ":")):
        label = f"{bands} bands of {rows} rows" + (" (default)" if bands == 32 else "")
        axes.plot(grid, [collision_probability(value, bands, rows) for value in grid], style, label=label)
    for low in np.arange(LEAST, 1.0, STEP):
        chosen = (similarities >= low) & (similarities < low + STEP)
        if chosen.sum() >= 10:
            share, number = is_found[chosen].mean(), chosen.sum()
            error = 1.96 * np.sqrt(max(share * (1 - share), 1e-4) / number)
            axes.errorbar(similarities[chosen].mean(), share, error, fmt="o", color="black", capsize=3, markersize=4)
    axes.plot([], [], "o", color="black", markersize=4, label="measured, one permutation, 32 x 8")
    axes.axvline(0.7, color="grey", linewidth=0.8)
    axes.set(xlabel="exact Jaccard similarity", ylabel="probability of a comparison", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(OUTPUT, metadata={"Date": None})


if __name__ == "__main__":
    main()
