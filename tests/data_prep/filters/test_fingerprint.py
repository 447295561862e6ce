"""What the fingerprint of the filters depends on: the content of the files that they read, not where these lie."""

from pathlib import Path

import pytest

from data_prep.filters.config import FiltersConfig
from data_prep.filters.decontamination import DecontaminationConfig
from data_prep.filters.fingerprint import filters_fingerprint
from mose.errors import MoseError

OFF = DecontaminationConfig()


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_opt_out_lists_count_by_their_entries(tmp_path: Path) -> None:
    def of(*texts: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        names = tuple(write(folder / f"{i}.txt", text) for i, text in enumerate(texts))
        return filters_fingerprint(FiltersConfig(opt_out=names), OFF)

    assert of("a/b\nc/d\n") == of("# once more\nc/d\n", "A/b") != of("a/b\n")
    assert of() == of("") == filters_fingerprint(FiltersConfig(), OFF)


def test_evaluation_files_count_by_name_and_bytes(tmp_path: Path) -> None:
    here, there = (write(tmp_path / name / "a.txt", "some text") for name in ("here", "there"))
    other = write(tmp_path / "other" / "a.txt", "some other text")

    renamed = write(tmp_path / "here" / "b.txt", "some text")

    def of(*files: str) -> str:
        return filters_fingerprint(FiltersConfig(), DecontaminationConfig(files))

    assert of(here) == of(there)
    assert len({of(), of(here), of(other), of(renamed), of(here, other)}) == 5


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.txt")
    with pytest.raises(MoseError, match="absent.txt: cannot be read: .*; expected an evaluation file"):
        filters_fingerprint(FiltersConfig(), DecontaminationConfig((absent,)))
    with pytest.raises(MoseError, match="absent.txt: cannot be read: .*; expected a list"):
        filters_fingerprint(FiltersConfig(opt_out=(absent,)), OFF)
