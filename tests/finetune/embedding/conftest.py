"""A tiny retrieval checkpoint for the tests of embedding and search."""

from pathlib import Path

import pytest

from mose.checkpoint.converted_checkpoint import load_pretrained, retrieval_from_pretrained, write_checkpoint


@pytest.fixture(scope="session")
def retrieval(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A retrieval checkpoint with exits 1, 2, 4, not trained."""
    folder = tmp_path_factory.mktemp("retrieval") / "checkpoint"
    write_checkpoint(folder, retrieval_from_pretrained(load_pretrained(checkpoint), 0), checkpoint, {})
    return folder
