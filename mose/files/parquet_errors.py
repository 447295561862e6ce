"""What pyarrow raises on a damaged parquet file, for every reader of one."""

import pyarrow as pa

# Pages are only decoded when they are read: a damaged one may announce more memory than there is, or text that is not UTF-8.
PARQUET_ERRORS = (OSError, pa.ArrowException, ValueError, MemoryError, OverflowError, LookupError, TypeError)
