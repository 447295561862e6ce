"""How well `data_prep.sources.detection` agrees with GitHub Linguist's own Ruby code, and what it costs per file.

ruby benchmarks/linguist.rb FOLDER < paths > answers.tsv          # Linguist itself, once; see the file
python benchmarks/linguist.py --answers FOLDER=answers.tsv ... --output benchmarks/results/linguist.json
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from data_prep.sources.detection.generated import is_generated
from data_prep.sources.detection.language import language_of
from data_prep.sources.detection.rules import load_rules


def compare(folder: Path, answers: Path) -> tuple[Counter[str], list[str], float]:
    """Counts of agreement over the files of one TSV, the files on which the two differ, and seconds of CPU."""
    counts: Counter[str] = Counter()
    different: list[str] = []
    rules = load_rules()
    seconds = 0.0
    for line in answers.read_text("utf-8").splitlines():
        path, language, *flags = line.split("\t")
        generated, vendored, documentation, binary = (flag == "1" for flag in flags)
        content = (folder / path).read_bytes()
        began = time.process_time()
        ours = (
            language_of(path, content),
            is_generated(path, content),
            rules.vendored.match(path),
            rules.documentation.match(path),
        )
        seconds += time.process_time() - began
        counts["files"] += 1
        theirs_dropped, ours_dropped = generated or vendored, ours[1] or ours[2]
        counts["dropped by both"] += theirs_dropped and ours_dropped
        counts["dropped by Linguist"] += theirs_dropped
        counts["dropped by us alone"] += ours_dropped and not theirs_dropped
        counts["documentation differs"] += ours[3] != documentation
        # Linguist names no language of a binary or empty file.
        if not binary and content:
            counts["texts"] += 1
            counts["same language"] += ours[0] == language
            if ours[0] != language:
                different.append(f"{path}: {language} by Linguist, {ours[0]} by us")
        if theirs_dropped != ours_dropped:
            different.append(f"{path}: dropped {theirs_dropped} by Linguist, {ours_dropped} by us")
    return counts, different, seconds


def main() -> None:
    """Compare every given pair and write the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", nargs="+", required=True, metavar="FOLDER=TSV")
    parser.add_argument("--output", default="")
    parsed = parser.parse_args()
    total: Counter[str] = Counter()
    folders: dict[str, Any] = {}
    seconds = 0.0
    for pair in parsed.answers:
        folder, _, answers = pair.partition("=")
        counts, different, spent = compare(Path(folder), Path(answers))
        total += counts
        seconds += spent
        folders[Path(folder).name] = {**counts, "examples": different[:20]}
        print(*different, sep="\n")
    others = total["files"] - total["dropped by Linguist"]
    result = {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 used), {platform.processor() or platform.machine()}, no GPU",
        "linguist": load_rules().version,
        "files": total["files"],
        "same language share of texts": total["same language"] / total["texts"],
        "share of Linguist's generated or vendored that is dropped": total["dropped by both"] / total["dropped by Linguist"],
        "share of the rest that is dropped": total["dropped by us alone"] / others,
        "documentation differs": total["documentation differs"],
        "microseconds per file": seconds / total["files"] * 1e6,
        "folders": folders,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "folders"}, indent=1))
    if parsed.output:
        Path(parsed.output).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
