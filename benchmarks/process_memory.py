"""Memory of this process, as Linux reports it."""

import re
from pathlib import Path


def status_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes: VmRSS is what is resident now, VmHWM the most that was.

    Raises:
        RuntimeError: there is no such field, as anywhere but on Linux.
    """
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"/proc/self/status: no {field}, expected Linux")
    return int(found[1]) * 1024
