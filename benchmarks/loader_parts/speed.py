"""Rows per second of one core: raw at random, and masked, collated batches, against webdataset's pipeline on the same tars."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset

from mose.dataset.manifest import read_manifest
from mose.dataset.packed_sequence import SpecialTokens
from mose.tokenizer import load_tokenizer
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.storage.local_rows import LocalRows

REPEATS = 5
RAW_ROWS = 256
GLOBAL_ROWS = 2048
COLLATED_ROWS = 32
# webdataset is a hundred times slower: it gets fewer rows, at the same rate.
WEBDATASET_ROWS = 2048


def measure_speed(dataset: Path) -> dict[str, object]:
    """Medians over repeats, all sides in turn in each; CPU time of the process, which other load on the machine disturbs less."""
    torch.set_num_threads(1)
    works = works_on(dataset)
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            began = time.process_time()
            rows = work()
            rates[name].append(rows / (time.process_time() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "cpu_milliseconds_a_step_of_one_rank_of_128": round(step_of_one_rank(dataset, 128), 2),
        "rows_per_cpu_second": {name: round(value) for name, value in medians.items()},
        "ratio_raw": round(medians["ours_raw"] / medians["webdataset_raw"], 1),
        "ratio_masked": round(medians["ours_masked_micro_batch_4"] / medians["webdataset_masked"], 1),
        "bars": {"ratio_raw": 100, "ratio_masked": 5, "ours_masked": 10_000},
    }


def works_on(dataset: Path) -> dict[str, Callable[[], int]]:
    """What is timed, by name; each call reads rows and returns their number."""
    rows, tokenizer = LocalRows(dataset, "train"), load_tokenizer(dataset)
    shards = [str(dataset / shard.path) for shard in read_manifest(dataset).shards("train")]
    order = np.random.default_rng(0).permutation(len(rows))
    steps = range(0, len(rows) - GLOBAL_ROWS + 1, GLOBAL_ROWS)

    def ours_raw() -> int:
        return sum(len(rows.tokens(order[start : start + RAW_ROWS])) for start in range(0, len(order), RAW_ROWS))

    def ours_masked(micro_batch_rows: int) -> int:
        loader = GlobalBatchLoader(rows, BatchPlan(0, GLOBAL_ROWS, micro_batch_rows, tokenizer.special, tokenizer.ordinary_ids()))
        return sum(batch.num_rows for start in steps for batch in loader.share(start))

    def samples() -> Iterator[dict[str, object]]:
        pipeline = webdataset.WebDataset(shards, shardshuffle=False).shuffle(1000).decode()
        for number, sample in enumerate(pipeline):
            if number == WEBDATASET_ROWS:
                return
            yield sample

    return {
        "ours_raw": ours_raw,
        "webdataset_raw": lambda: sum(1 for _ in samples()),
        "ours_masked_micro_batch_4": lambda: ours_masked(4),
        "ours_masked_micro_batch_32": lambda: ours_masked(32),
        "webdataset_masked": lambda: sum(collated(samples(), tokenizer.special, tokenizer.vocabulary_size)),
    }


def step_of_one_rank(dataset: Path, data_ranks: int) -> float:
    """CPU milliseconds of a rank for its share of a step: every rank computes the order and the balancing of the whole batch."""
    rows, tokenizer = LocalRows(dataset, "train"), load_tokenizer(dataset)
    plan = BatchPlan(0, GLOBAL_ROWS, 4, tokenizer.special, tokenizer.ordinary_ids(), 0, data_ranks)
    loader, seconds = GlobalBatchLoader(rows, plan), []
    for step in range(20):
        began = time.process_time()
        loader.share(step * GLOBAL_ROWS)
        seconds.append(time.process_time() - began)
    return statistics.median(seconds) * 1000


def collated(samples: Iterator[dict[str, object]], special: SpecialTokens, vocabulary_size: int) -> Iterator[int]:
    """Batches as a user of webdataset and transformers makes them; the masking is that of DataCollatorForLanguageModeling."""
    ids = torch.tensor(special.ids())
    batch: list[dict[str, object]] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == COLLATED_ROWS:
            inputs = torch.from_numpy(np.stack([item["npy"] for item in batch]).astype(np.int64))  # type: ignore[arg-type]
            mixed = torch.tensor([item["json"]["mixed"] for item in batch])  # type: ignore[index]
            attention_mask = (inputs != special.pad).long()
            labels = inputs.clone()
            chances = torch.full(labels.shape, 0.15)
            chances.masked_fill_(torch.isin(labels, ids), value=0.0)
            masked = torch.bernoulli(chances).bool()
            labels[~masked] = -100
            replaced = torch.bernoulli(torch.full(labels.shape, 0.8)).bool() & masked
            inputs[replaced] = special.mask
            random = torch.bernoulli(torch.full(labels.shape, 0.5)).bool() & masked & ~replaced
            inputs[random] = torch.randint(vocabulary_size, labels.shape, dtype=torch.long)[random]
            assert attention_mask.shape == inputs.shape and mixed.shape[0] == COLLATED_ROWS
            batch = []
            yield COLLATED_ROWS
