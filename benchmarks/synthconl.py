"""From repositories to triplets to fine-tuning, by the commands a user types, against the local server that answers by a rule.

python -m benchmarks.synthconl --stack 'FOLDER/*.parquet' --checkpoint EXPORTED --work DIR [--output benchmarks/results/FILE.json]

The server is no model (`tests/data_prep/rule_server.py`): its answers parse and hold the words of their source, so the MRR says
that fine-tuning reads the data and learns from it, and nothing about translations. A tenth of the requests fails.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.synthconl.translation.journal import PATTERN, read_entries
from mose.files.atomic_file import write_json
from tests.data_prep.rule_server import ANSWER_FAULTS, MODEL, TRANSPORT_FAULTS, rule_server

FAULT_SHARE, HELD_OUT_FRACTION = 0.1, 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", required=True, help="Glob of The Stack v2's rows with content.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="Pre-trained folder, e.g. quickstart/pretrained.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    figures = {
        "date": str(datetime.date.today()),
        "hardware": f"{os.cpu_count()} cores shared with other work, {platform.machine()}, no GPU, no model",
        "server": "answers by a rule; a tenth of the requests fails",
        "seed": 0,
        **build(options.work, options.stack),
        **fine_tune(options.work, options.checkpoint, options.steps),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(figures, indent=1))
    if options.output:
        write_json(options.output, figures)


def run(*words: str) -> None:
    """One command, as a user types it; a finished one is not run again."""
    print("$", *words, flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True)


def build(work: Path, stack: str) -> dict[str, Any]:
    """Seeds to the final folder; the counts of each stage."""
    seeds, translations, draft, near, final = (work / name for name in ("seeds.parquet", "tr", "draft", "near", "final"))
    if not seeds.exists():
        sources = ("--sources.stack_v2", json.dumps([stack]), "--held_out_fraction", str(HELD_OUT_FRACTION))
        run("data_prep.cli", "seeds", "--output", str(seeds), *sources)
    with rule_server(FAULT_SHARE, (*TRANSPORT_FAULTS, *ANSWER_FAULTS)) as server:
        patience = ("--timeout_seconds", "1.2", "--backoff_seconds", ".05", "--attempts", "30")
        places = ("--seeds", str(seeds), "--output", str(translations), "--url", server.address, "--model", MODEL)
        run("data_prep.cli", "translate", *places, *patience)
    if not draft.exists():
        places = ("--seeds", str(seeds), "--translations", str(translations))
        run("data_prep.cli", "synthconl", *places, "--output", str(draft))
    run("data_prep.cli", "dedup", "--inputs", json.dumps([str(draft / "synthconl.parquet")]), "--output", str(near))
    if not final.exists():
        places = ("--draft", str(draft), "--duplicates", str(near / "groups"))
        run("data_prep.cli", "synthconl", *places, "--output", str(final))
    plain = json.loads((final / "statistics.json").read_text("utf-8"))
    functions = json.loads(seeds.with_suffix(".json").read_text("utf-8"))["functions"]
    outcomes: Counter[str] = Counter()
    for counts in functions.values():
        outcomes.update(counts)
    kept = {name: counts["kept"] for name, counts in functions.items() if counts.get("kept")}
    return {
        "functions": dict(outcomes),
        "seeds_by_language": kept,
        "answers": dict(Counter(entry.outcome for path in translations.glob(PATTERN) for _, entry in read_entries(path))),
        **{name: plain[name] for name in ("rows", "dropped", "split", "repositories", "in_both_splits", "language2")},
    }


def fine_tune(work: Path, checkpoint: Path, steps: int) -> dict[str, Any]:
    """The contrastive stage on the final file: MRR of each exit on held-out pairs at each validation."""
    output = work / "retrieval"
    size = ("--steps", str(steps), "--batch_pairs", "64", "--chunk_pairs", "64", "--validation_queries", "500")
    places = ("--checkpoint", str(checkpoint), "--pairs", str(work / "final" / "synthconl.parquet"), "--output", str(output))
    shape = ("--config", "configs/quickstart/retrieval.yaml", "--validate_every_steps", str(steps // 8))
    run("finetune.cli", "retrieval", *shape, *places, *size)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = {line["step"]: {name: value for name, value in line.items() if name.endswith("/mrr")} for line in lines}
    return {"validation_mrr": {str(step): values for step, values in found.items() if values}}


if __name__ == "__main__":
    main()
