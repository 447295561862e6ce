"""datatrove's MinHash deduplication of a folder of parquet files, in its four stages; run by a Python that has datatrove."""

import sys
from pathlib import Path


def main() -> None:
    # Imported here: the project's own Python does not have datatrove, and imports every benchmark.
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    data, output = sys.argv[1], Path(sys.argv[2])
    config = minhash.MinhashConfig(n_grams=5, num_buckets=32, hashes_per_bucket=8)
    signatures, buckets, removed = (str(output / name) for name in ("signatures", "buckets", "removed"))
    stages = (
        ([ParquetReader(data), minhash.MinhashDedupSignature(signatures, config)], 1),
        ([minhash.MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
        ([minhash.MinhashDedupCluster(buckets, removed, config=config)], 1),
        ([ParquetReader(data), minhash.MinhashDedupFilter(removed), ParquetWriter(str(output / "kept"))], 1),
    )
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(output / f"log-{number}")).run()


if __name__ == "__main__":
    main()
