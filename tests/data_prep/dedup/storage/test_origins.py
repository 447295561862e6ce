"""Covers the file of origins: what is asked for in ascending order, over batches, and nothing of an empty file."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.dedup.storage import origins
from data_prep.dedup.storage.origins import OriginWriter, read_origins


@pytest.mark.parametrize("wanted", [[], [5], [12], [5, 6, 7, 11, 12], list(range(5, 13))])
def test_origins_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[int]) -> None:
    monkeypatch.setattr(origins, "_BATCH_ROWS", 3)
    path = tmp_path / "part.origins"
    with path.open("wb") as file:
        writer = OriginWriter(file)
        for place in range(5, 13):
            writer.add(place, "owner/name", f"/{place}.py", f"{place:040x}")
        writer.close()
    found = list(read_origins(path, np.array(wanted, np.int64)))
    assert found == [("owner/name", f"/{place}.py", f"{place:040x}") for place in wanted]


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "part.origins"
    with path.open("wb") as file:
        OriginWriter(file).close()
    assert list(read_origins(path, np.array([], np.int64))) == []
