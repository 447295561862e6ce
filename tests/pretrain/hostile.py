"""Checkpoint files that try to run code: what an attacker would put in place of a rank's part."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch


class Exploit:
    """Unpickling it creates a folder."""

    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._mark),)


def torch_file(path: Path, mark: Path) -> None:
    """An archive of `torch.save`, like the real part."""
    torch.save({"optimizer_state_dict": Exploit(mark)}, path)


def old_torch_file(path: Path, mark: Path) -> None:
    """The format of torch before 1.6: pickles one after the other."""
    torch.save({"optimizer_state_dict": Exploit(mark)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, mark: Path) -> None:
    """A pickle of the newest protocol."""
    path.write_bytes(pickle.dumps({"optimizer_state_dict": Exploit(mark)}))


HOSTILE = [torch_file, old_torch_file, bare_pickle]
