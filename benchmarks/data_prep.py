"""Code text to packed shards: throughput against the bare tokenizer and against Megatron's way, memory, cost of 10^12 tokens.

python -m benchmarks.data_prep [--text FOLDER ...] [--tokenizer FOLDER] [--output benchmarks/results/FILE.json]

Rates are megabytes of text per process CPU second (all threads), which other load on the machine disturbs less than wall time.
Every repeat runs all sides one after another on the same texts; a number is the median of the repeats, a ratio the median of
the ratios inside one repeat. Loading a tokenizer, once per task, is not counted. Each repeat loads it again, because
gigatoken's `encode` caches words. HF tokenizers get every n-th text, because they are slow.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import sentencepiece
import tokenizers
from rich.console import Console
from rich.table import Table

from data_prep.filters.config import FiltersConfig
from data_prep.filters.dropped_log import DroppedLog
from data_prep.filters.filters import FilterCounts, filter_repository
from data_prep.packing.config import PackingConfig
from data_prep.packing.pack import pack
from data_prep.packing.rows import ChunkTable, LabelBalance, RowCounts
from data_prep.pipeline.chunker import BATCH_CHARACTERS, Chunker, TextBatcher
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.shuffle_buffer import ChunkedFiles, join_files
from data_prep.pipeline.split_writer import SplitWriter
from data_prep.pipeline.task import run_task
from data_prep.pipeline.task_marker import TaskMarker
from data_prep.sources.registry import SourcesConfig
from data_prep.sources.repositories import RepositoryRef, SourceFile, TextFile, content_sha1
from data_prep.tokenization.train_tokenizer import TokenizerTrainingConfig, train_tokenizer
from mose.checkpoint.fast_tokenizer import convert
from mose.dataset.row_index import INDEX_DTYPE
from mose.dataset.shard_format import RecordLayout
from mose.files.atomic_file import write_json
from mose.tokenizer import Tokenizer, load_tokenizer

SLOW_TEXT_BYTES = 2_000_000
TRILLION = 10**12
ROWS_A_TASK = 1_000_000
# Shard, index, lineage, list of dropped files and marker of a task, held-out files aside.
FILES_A_TASK = 5


@dataclass(frozen=True)
class Work:
    """The input of every side."""

    texts: list[TextFile]
    tokenizer: Tokenizer
    scratch: Path

    @property
    def num_bytes(self) -> int:
        """Bytes of all texts."""
        return sum(len(file.source.content) for file in self.texts)

    def sample(self, num_bytes: int) -> "Work":
        """Every n-th text, up to about that many bytes."""
        return Work(self.texts[:: max(1, self.num_bytes // num_bytes)], self.tokenizer, self.scratch)


# What prepares a run of its own and returns it, ready to be timed.
Side = Callable[[Work], Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", help="Folders of source files (default: this Python's own sources).")
    parser.add_argument("--tokenizer", type=Path, help="Folder that keeps the tokenizer for the next time (default: none).")
    parser.add_argument("--megabytes", type=float, default=120, help="How much text.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = trained_tokenizer(arguments.tokenizer or Path(scratch) / "tokenizer")
        folders = arguments.text or [Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")]
        work = Work(list(read_texts(folders, arguments.megabytes * 1e6)), tokenizer, Path(scratch))
        figures = measure(work, arguments.repeats)
        figures["peak_memory_megabytes"] = peak_memory(folders, arguments.megabytes * 1e6, work)
    Console(soft_wrap=True).print(table_of(figures))
    print(json.dumps(figures["cost_of_a_trillion_tokens"], indent=1))
    if arguments.output:
        write_json(arguments.output, figures)


def trained_tokenizer(folder: Path) -> Tokenizer:
    """The 49,152 pieces that `mose-data train-tokenizer` makes of this Python's packages; trained where the folder has none."""
    if not folder.exists():
        train_tokenizer(TokenizerTrainingConfig(output=str(folder), sources=SourcesConfig(installed_packages=True)))
    return load_tokenizer(folder)


def read_texts(folders: Sequence[Path], limit: float) -> Iterator[TextFile]:
    """Python sources up to `limit` bytes; each top-level folder below `folders` counts as a repository."""
    total = 0
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder)
            # The packages are below the standard library too.
            if path.stat().st_size > 1 << 20 or (folder != folders[0] and "site-packages" in name.parts):
                continue
            content = path.read_bytes()
            try:
                text = content.decode()
            except ValueError:
                continue
            if total >= limit:
                return
            if text.strip():
                total += len(content)
                source = SourceFile(name.parts[0], f"/{name}", content, "Python", (), "permissive", content_sha1(content))
                yield TextFile(source, text)


def measure(work: Work, repeats: int) -> dict[str, Any]:
    """All numbers."""
    slow = work.sample(SLOW_TEXT_BYTES)
    sides: dict[str, tuple[Side, Work]] = {
        "bare gigatoken": (encode_bare, work),
        "packed shards": (pack_texts, work),
        "packed shards, filters on": (pack_filtered, work),
        "gigatoken by document + IndexedDatasetBuilder": (index_by_document, work),
        "gigatoken in batches + IndexedDatasetBuilder": (index_in_batches, work),
        "HF tokenizers + IndexedDatasetBuilder": (index_with_hugging_face, slow),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (side, given) in sides.items():
            rates[name].append(given.num_bytes / 1e6 / cpu_seconds(side, given))
    result = run_whole_task(work.texts, work.tokenizer.path, work.scratch)
    ours = rates["packed shards"]
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU",
        "load_average": os.getloadavg(),
        "text_megabytes": work.num_bytes / 1e6,
        "texts": len(work.texts),
        "megabytes_per_cpu_second": {name: statistics.median(values) for name, values in rates.items()},
        "packed_shards_to": {
            name: statistics.median(a / b for a, b in zip(ours, values, strict=True)) for name, values in rates.items()
        },
        "filters_on_to_bare": statistics.median(
            a / b for a, b in zip(rates["packed shards, filters on"], rates["bare gigatoken"], strict=True)
        ),
        "packing": measure_packing(work, repeats),
        "cost_of_a_trillion_tokens": cost(work, result, statistics.median(rates["packed shards, filters on"])),
    }


def cpu_seconds(side: Side, work: Work) -> float:
    run = side(work)
    began = time.process_time()
    run()
    return time.process_time() - began


def batches(work: Work) -> Iterator[list[str]]:
    """The texts in the batches in which packing encodes them."""
    batch: list[str] = []
    characters = 0
    for file in work.texts:
        batch.append(file.text)
        characters += len(file.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def load_gigatoken(work: Work) -> gigatoken.Tokenizer:
    return gigatoken.Tokenizer.from_sentencepiece(str(work.tokenizer.path))


def encode_bare(work: Work) -> Callable[[], int]:
    """gigatoken and nothing else; its ids seen as numpy arrays."""
    fast = load_gigatoken(work)
    return lambda: sum(len(np.asarray(fast.encode_batch(batch, parallel=False).layout.content.data)) for batch in batches(work))


def pack_texts(work: Work) -> Callable[[], RowCounts]:
    """Texts to a published shard with index and lineage."""
    config = PackingConfig().resolve()
    chunker = Chunker(work.tokenizer, config)

    def run() -> RowCounts:
        with tempfile.TemporaryDirectory(dir=work.scratch) as dataset:
            with SplitWriter(Path(dataset), "train", 0, 0, config, work.tokenizer) as writer:
                chunk_texts(work, chunker, writer.add)
                writer.close()
            return writer.counts

    return run


def chunk_texts(work: Work, chunker: Chunker, consume: Callable[[ChunkedFiles], object]) -> None:
    batcher = TextBatcher(chunker, consume, FilterCounts())
    for file in work.texts:
        batcher.add(file)
    batcher.flush()


def pack_filtered(work: Work) -> Callable[[], RowCounts]:
    """The same from bytes in memory, with all filters on and their log of dropped files."""
    config, filters = PackingConfig().resolve(), FiltersConfig()
    chunker = Chunker(work.tokenizer, config)

    def run() -> RowCounts:
        counts = FilterCounts()
        with tempfile.TemporaryDirectory(dir=work.scratch) as folder, DroppedLog(Path(folder), 0) as dropped:
            with SplitWriter(Path(folder), "train", 0, 0, config, work.tokenizer) as writer:
                batcher = TextBatcher(chunker, writer.add, counts, dropped)
                for _, files in repositories(work.texts):
                    for text in filter_repository(files, filters, counts, dropped):
                        batcher.add(text)
                batcher.flush()
                writer.close()
            return writer.counts

    return run


def run_whole_task(texts: Iterable[TextFile], tokenizer: Path, scratch: Path) -> TaskMarker:
    """A task as `mose-data pack` runs it."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        config = PackConfig(output=f"{folder}/dataset", tokenizer=str(tokenizer), num_tasks=1, held_out_fraction=0.0)
        return run_task(config.resolve(), 0, repositories(texts), "benchmark")


def repositories(texts: Iterable[TextFile]) -> Iterator[tuple[RepositoryRef, Iterator[SourceFile]]]:
    """The files of the texts, repository after repository, each read when it is asked for."""
    for name, files in itertools.groupby((file.source for file in texts), key=lambda source: source.repository):
        yield RepositoryRef(name, "directory", ""), files


def index_by_document(work: Work) -> Callable[[], None]:
    """As Megatron's preprocess_data works: one document after another."""
    fast, builder = load_gigatoken(work), new_builder(work)

    def run() -> None:
        for file in work.texts:
            ids = fast.encode(file.text)
            builder.add_document(ids, [len(ids)])
        builder.finalize(str(work.scratch / "megatron.idx"))

    return run


def index_in_batches(work: Work) -> Callable[[], None]:
    """The same with the batches that packing uses, which preprocess_data does not."""
    fast, builder = load_gigatoken(work), new_builder(work)

    def run() -> None:
        for batch in batches(work):
            layout = fast.encode_batch(batch, parallel=False).layout
            ids, bounds = np.asarray(layout.content.data), np.asarray(layout.offsets.data).tolist()
            for start, end in itertools.pairwise(bounds):
                builder.add_document(ids[start:end], [end - start])
        builder.finalize(str(work.scratch / "megatron.idx"))

    return run


def index_with_hugging_face(work: Work) -> Callable[[], None]:
    """The same tokenizer as a tokenizer.json in Hugging Face's library, encoded in batches."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(work.tokenizer.path))
    slow, builder = tokenizers.Tokenizer.from_str(convert(processor).to_str()), new_builder(work)

    def run() -> None:
        for batch in batches(work):
            for encoded in slow.encode_batch(batch, add_special_tokens=False):
                builder.add_document(encoded.ids, [len(encoded.ids)])
        builder.finalize(str(work.scratch / "megatron.idx"))

    return run


def new_builder(work: Work) -> Any:
    # Imported here: it brings torch, which is no part of packing's memory.
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    return IndexedDatasetBuilder(str(work.scratch / "megatron.bin"), dtype=np.uint16)


def measure_packing(work: Work, repeats: int) -> dict[str, float]:
    """Seconds for 10^6 chunks of these texts, and statistics of the rows."""
    config = PackingConfig().resolve()
    parts: list[ChunkedFiles] = []
    chunk_texts(work, Chunker(work.tokenizer, config), parts.append)
    table: ChunkTable = join_files(parts).table()
    seconds, counts = [], RowCounts()
    for _ in range(repeats):
        began = time.process_time()
        packing = pack(table, 0, config, LabelBalance(config.mixed_share))
        seconds.append(time.process_time() - began)
    counts.add(packing, table)
    return {
        "seconds_per_million_pieces": statistics.median(seconds) / len(table.lengths_C) * 1e6,
        "pieces": len(table.lengths_C),
        "fill": counts.tokens / counts.rows / config.sequence_length,
        "mixed_share": counts.mixed_rows / counts.rows,
        "single_snippet_share": counts.single_snippet_rows / counts.rows,
        "single_file_share_of_unmixed": counts.single_file_rows / (counts.rows - counts.mixed_rows),
    }


def peak_memory(folders: Sequence[Path], limit: float, work: Work) -> dict[str, float]:
    """Peak resident memory of a process of its own that reads and packs these texts, and of the same before it begins."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        before, after = executor.submit(_pack_and_tell, folders, limit, work.tokenizer.path, work.scratch).result()
    return {"libraries": before, "packing": after}


def _pack_and_tell(folders: Sequence[Path], limit: float, tokenizer: Path, scratch: Path) -> tuple[float, float]:
    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

    before = peak()
    run_whole_task(read_texts(folders, limit), tokenizer, scratch)
    return before, peak()


def cost(work: Work, result: TaskMarker, megabytes_per_second: float) -> dict[str, str]:
    """What 10^12 tokens of text take, with the arithmetic."""
    counts, entry = result.rows["train"], result.shards["train"]
    kept = result.filters["reasons"]["kept"]["bytes"]
    bytes_a_token, fill = kept / counts["text_tokens"], counts["tokens"] / counts["rows"] / PackingConfig().sequence_length
    slots_a_text_token = counts["tokens"] / counts["text_tokens"]
    rows = TRILLION * slots_a_text_token / (fill * PackingConfig().sequence_length)
    stride = RecordLayout(PackingConfig().sequence_length, work.tokenizer.dtype).stride
    hours = TRILLION * bytes_a_token / (megabytes_per_second * 1e6) / 3600
    tasks = -(-rows // ROWS_A_TASK)
    return {
        "text": f"{TRILLION:.0e} tokens x {bytes_a_token:.2f} bytes = {TRILLION * bytes_a_token / 1e12:.2f} TB",
        "core_hours": f"{TRILLION * bytes_a_token / 1e12:.2f} TB / {megabytes_per_second:.1f} MB/s / 3600 = {hours:.0f}",
        "rows": f"{TRILLION:.0e} tokens x {slots_a_text_token:.4f} slots / ({fill:.4f} x 2048) = {rows:.3e}",
        "shards": f"{rows:.3e} rows x {stride} bytes = {rows * stride / 1e12:.2f} TB",
        "indexes": f"{rows:.3e} rows x {INDEX_DTYPE.itemsize} bytes = {rows * INDEX_DTYPE.itemsize / 1e9:.1f} GB",
        "files": f"{rows:.3e} rows / {ROWS_A_TASK} a task x {FILES_A_TASK} = {tasks * FILES_A_TASK:.0f} in {tasks:.0f} tasks",
        "tokens_in_shard": str(entry.tokens),
    }


def table_of(figures: dict[str, Any]) -> Table:
    """The rates and ratios as a table."""
    table = Table(
        "side", "MB/s per core", "packed shards are x times", title=f"data_prep, {figures['date']}", title_justify="left"
    )
    for name, rate in figures["megabytes_per_cpu_second"].items():
        table.add_row(name, f"{rate:.2f}", f"{figures['packed_shards_to'][name]:.2f}")
    for name in ("packing", "peak_memory_megabytes"):
        for what, value in figures[name].items():
            table.add_row(f"{name}: {what}", f"{value:,.3f}", "")
    table.add_row("filters on / bare", f"{figures['filters_on_to_bare']:.3f}", "")
    return table


if __name__ == "__main__":
    main()
