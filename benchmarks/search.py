"""Search in figures: index and query time of a large folder, and a cascade's quality against its compute. CPU, one run.

python -m benchmarks.search speed --checkpoint FINE_TUNED --sources FOLDER [--functions 50000] [--output FILE.json]
python -m benchmarks.search cascade --checkpoint FINE_TUNED --pairs PAIRS --cosqa FOLDER [--output FILE.json]
python -m benchmarks.search questions --checkpoint FINE_TUNED --folder . --questions FILE.jsonl [--output FILE.json]
"""

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.embedding.config import SearchConfig
from finetune.embedding.encoder import QUERY, Encoder
from finetune.embedding.search.functions import functions_of_folder, source_files
from finetune.embedding.search.index import bring_up_to_date, open_encoder, open_store
from finetune.evaluation.baselines.lexical import lexical_terms
from finetune.evaluation.metrics import chance_mrr
from finetune.pair_files import read_pair_files
from mose.dataset.functions import FunctionReader
from mose.files.json_file import json_lines
from mose.model.size import flops_per_row

CANDIDATES = (5, 10, 20, 50, 100, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["speed", "cascade", "questions"])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--sources", type=Path, help="Folder whose Python files are copied until there are enough functions.")
    parser.add_argument("--functions", type=int, default=50_000)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--cosqa", type=Path, help="Folder with CoSQA's corpus, queries and qrels.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--questions", type=Path, help="JSON lines with `question` and `names`, the functions that answer it.")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {"speed": speed, "cascade": cascade, "questions": questions}
    found = {"date": str(datetime.date.today()), "cores": os.cpu_count(), "threads": 1, "max_length": options.max_length}
    found[options.part] = parts[options.part](options)
    print(json.dumps(found, indent=1))
    if options.output:
        before = json.loads(options.output.read_text()) if options.output.exists() else {}
        options.output.write_text(json.dumps({**before, **found}, indent=1) + "\n")


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of the first search of a folder, of one where nothing changed, and of one where a file changed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sources"
        functions = copy_sources(options.sources, folder, options.functions)
        config = SearchConfig(
            str(options.checkpoint), index=str(Path(place) / "index.sqlite"), max_length=options.max_length, threads=1
        )
        steps: dict[str, Any] = {"functions": functions, "files": sum(1 for _ in source_files(folder))}
        encoder = open_encoder(config)
        steps["exits"] = list(encoder.exits)
        started = time.process_time()
        reader = FunctionReader()
        for file in source_files(folder):
            file.functions(reader)
        steps["parsing_alone"] = time.process_time() - started
        steps["first_search"] = timed_search(config, folder, encoder)
        again = [timed_search(config, folder, encoder) for _ in range(3)]
        steps["nothing_changed"] = {name: statistics.median(each[name] for each in again) for name in again[0]}
        changed = next(iter(sorted(folder.rglob("*.py"))))
        changed.write_text(changed.read_text("utf-8", errors="replace") + "\n\ndef one_more(x):\n    return x\n")
        steps["one_file_changed"] = timed_search(config, folder, encoder)
        steps["index_megabytes"] = Path(str(config.index)).stat().st_size / 1e6
    return steps


def copy_sources(sources: Path, folder: Path, wanted: int) -> int:
    """Copy Python files until they hold `wanted` functions; returns how many they hold."""
    reader, functions = FunctionReader(), 0
    for number, path in enumerate(sorted(sources.rglob("*.py"))):
        if functions >= wanted:
            break
        content = path.read_bytes()
        found = len(reader.read(content, ".py"))
        if found:
            functions += found
            target = folder / f"{number // 500:03d}" / f"{number:05d}_{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return functions


def timed_search(config: SearchConfig, folder: Path, encoder: Encoder) -> dict[str, float]:
    """CPU seconds of bringing the index up to date and loading it, and milliseconds of a question on the loaded index."""
    started = time.process_time()
    with open_store(config, folder, encoder) as store:
        index = bring_up_to_date(store, folder, encoder)
    loaded = time.process_time()
    times = []
    for number in range(20):
        begun = time.process_time()
        tables = encoder.encode_exits([f"read the table number {number} and sort it"], QUERY)
        for layer, table in tables.items():
            index.nearest(layer, table[0], 5)
        times.append(time.process_time() - begun)
    return {"seconds": loaded - started, "question_ms_all_exits": statistics.median(times) * 1e3}


def cascade(options: argparse.Namespace) -> dict[str, Any]:
    """MRR of each exit alone and of cascades, with the forward operations that index and questions take."""
    found = {}
    if options.pairs:
        pairs = read_pair_files((options.pairs,), "held_out")
        codes = list(dict.fromkeys(pair.code_a for pair in pairs))
        places = {code: place for place, code in enumerate(codes)}
        own = np.array([places[pair.code_a] for pair in pairs])
        found["held_out_pairs"] = quality(options, codes, [pair.nl for pair in pairs], own)
    if options.cosqa:
        corpus = [row for _, row in json_lines(options.cosqa / "cosqa_corpus.jsonl.gz", ("_id", "text"))]
        asked = {row["_id"]: row["text"] for _, row in json_lines(options.cosqa / "cosqa_queries_dev.jsonl.gz", ("_id", "text"))}
        lines = (options.cosqa / "cosqa_qrels_dev.tsv").read_text("utf-8").splitlines()[1:]
        relevant = {line.split("\t")[0]: line.split("\t")[1] for line in lines}
        ids = {row["_id"]: place for place, row in enumerate(corpus)}
        names = [name for name in asked if name in relevant]
        own = np.array([ids[relevant[name]] for name in names])
        found["cosqa_dev"] = quality(options, [row["text"] for row in corpus], [asked[name] for name in names], own)
    return found


def quality(options: argparse.Namespace, codes: Sequence[str], texts: Sequence[str], own_Q: NDArray[np.int64]) -> dict[str, Any]:
    """Scores and operations of one task; every question is ranked among all codes."""
    known = Encoder.from_pretrained(options.checkpoint, max_length=options.max_length).model.config.computed_exit_layers
    encoder = Encoder.from_pretrained(options.checkpoint, known, max_length=options.max_length, threads=1)
    code_tables, text_tables = encoder.encode_exits(codes, language="Python"), encoder.encode_exits(texts, QUERY)
    config, first, last = encoder.model.config, known[0], known[-1]
    tokens = round(float(np.mean([min(len(ids), options.max_length) for ids in encoder.tokenizer.encode_batch(list(codes))])))
    flops = {layer: flops_per_row(config, layer, tokens) for layer in known}
    scores = {layer: text_tables[layer] @ code_tables[layer].T for layer in known}
    ways: dict[str, Any] = {}
    for layer in known:
        ways[f"exit {layer}"] = {**rank_scores(ranks_of(scores[layer], own_Q)), "index_gflops": len(codes) * flops[layer] / 1e9}
    order_QK = np.argsort(-scores[first], axis=1, kind="stable")
    for count in CANDIDATES:
        recalled = order_QK[:, :count]
        ranks = cascade_ranks(scores[last], recalled, own_Q)
        deep = len(np.unique(recalled))
        operations = (len(codes) * flops[first] + deep * flops[last]) / 1e9
        share = float((recalled == own_Q[:, None]).any(axis=1).mean())
        ways[f"cascade {first} -> {last}, {count}"] = {
            **rank_scores(ranks),
            "recall_of_first": share,
            "codes_at_deep_exit": deep,
            "index_gflops": operations,
        }
    ways["BM25"] = rank_scores(ranks_of(bm25(texts, codes), own_Q))
    return {
        "questions": len(texts),
        "codes": len(codes),
        "chance_mrr": chance_mrr(len(codes)),
        "code_tokens": tokens,
        "ways": ways,
    }


def ranks_of(scores_QK: NDArray[np.floating], own_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank of each question's own code among all; ties count against it."""
    own = np.take_along_axis(scores_QK, own_Q[:, None], axis=1)
    ranks: NDArray[np.float64] = (scores_QK >= own).sum(axis=1).astype(np.float64)
    return ranks


def cascade_ranks(deep_QK: NDArray[np.floating], recalled_QC: NDArray[np.int64], own_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank of the own code among the candidates by the deep exit; one that is no candidate is never found: infinite."""
    scores_QC = np.take_along_axis(deep_QK, recalled_QC, axis=1)
    own = np.take_along_axis(deep_QK, own_Q[:, None], axis=1)
    ranks: NDArray[np.float64] = (scores_QC >= own).sum(axis=1).astype(np.float64)
    ranks[~(recalled_QC == own_Q[:, None]).any(axis=1)] = np.inf
    return ranks


def rank_scores(ranks: NDArray[np.float64]) -> dict[str, float]:
    return {
        "mrr": float((1 / ranks).mean()),
        "recall_at_1": float((ranks == 1).mean()),
        "recall_at_10": float((ranks <= 10).mean()),
    }


def bm25(texts: Sequence[str], codes: Sequence[str]) -> NDArray[np.floating]:
    """BM25 of each question and code, [Q, K]; identifiers are split into their parts."""
    terms = [lexical_terms(code) for code in codes]
    lengths = np.array([len(each) for each in terms], dtype=np.float64)
    postings: dict[str, dict[int, int]] = {}
    for place, each in enumerate(terms):
        for term in each:
            postings.setdefault(term, {})[place] = postings.get(term, {}).get(place, 0) + 1
    scores = np.zeros((len(texts), len(codes)))
    for number, text in enumerate(texts):
        for term in lexical_terms(text):
            found = postings.get(term, {})
            rarity = np.log(1 + (len(codes) - len(found) + 0.5) / (len(found) + 0.5))
            for place, count in found.items():
                scores[number, place] += rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths[place] / lengths.mean()))
    return scores


def questions(options: argparse.Namespace) -> dict[str, Any]:
    """For each question on a folder's own source: the rank of the first function that answers it, by exit and by BM25."""
    functions = functions_of_folder(options.folder)
    known = Encoder.from_pretrained(options.checkpoint).model.config.computed_exit_layers
    encoder = Encoder.from_pretrained(options.checkpoint, known, max_length=options.max_length, threads=1)
    asked = [row for _, row in json_lines(options.questions, ("question", "names"))]
    texts = [row["question"] for row in asked]
    tables = encoder.encode_exits([function.code for function in functions], language=[each.language for each in functions])
    vectors = encoder.encode_exits(texts, QUERY)
    scores: dict[str, NDArray[np.floating]] = {f"exit {layer}": vectors[layer] @ tables[layer].T for layer in known}
    scores["BM25"] = bm25(texts, [function.code for function in functions])
    rows = []
    for number, row in enumerate(asked):
        right = np.array([function.name in row["names"] for function in functions])
        ranks = {name: int((table[number] > table[number][right].max()).sum()) + 1 for name, table in scores.items()}
        tops = {name: functions[int(table[number].argmax())].name for name, table in scores.items()}
        rows.append({"question": row["question"], "answers": row["names"], "rank": ranks, "first_found": tops})
    first = {name: sum(row["rank"][name] == 1 for row in rows) for name in scores}
    among_five = {name: sum(row["rank"][name] <= 5 for row in rows) for name in scores}
    return {"functions": len(functions), "answered_first": first, "answered_among_5": among_five, "questions": rows}


if __name__ == "__main__":
    main()
