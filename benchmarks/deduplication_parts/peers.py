"""datatrove's MinHash deduplication of a folder of parquet files, in its four stages; run by a Python that has datatrove."""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter


def main() -> None:
    data, output = sys.argv[1], Path(sys.argv[2])
    config = MinhashConfig(n_grams=5, num_buckets=25, hashes_per_bucket=10)
    signatures, buckets, removed = (str(output / name) for name in ("signatures", "buckets", "removed"))
    stages = (
        ([ParquetReader(data), MinhashDedupSignature(signatures, config)], 1),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
        ([MinhashDedupCluster(buckets, removed, config=config)], 1),
        ([ParquetReader(data), MinhashDedupFilter(removed), ParquetWriter(str(output / "kept"))], 1),
    )
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(output / f"log-{number}")).run()


if __name__ == "__main__":
    main()
