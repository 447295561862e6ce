"""One writer per output: a second one is refused with the name of the first, tasks of one array run side by side."""

import json
import os
from pathlib import Path

import pytest

from data_prep.execution import finish
from data_prep.execution.finish import lock_dataset
from data_prep.execution.pack import pack_dataset
from data_prep.sources.ingest.blob_writer import BlobWriter
from data_prep.sources.registry import SourcesConfig
from data_prep.synthconl.mining.pairs import PairsConfig, build_pairs
from data_prep.tokenization.train_tokenizer import TokenizerTrainingConfig, train_tokenizer
from data_prep.tools.removal import command
from mose.command import run_command
from mose.errors import MoseError
from mose.files.lock import WRITER_LOCK, lock_file
from tests.data_prep.repositories import checksums, make_config

HOLDER = rf"process {os.getpid()} of .*: works on it; expected one"


def test_pack_finish_and_remove_of_one_data_set_refuse_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path)
    pack_dataset(config)
    dataset = tmp_path / "dataset"
    before = checksums(dataset)
    with lock_dataset(dataset):
        with pytest.raises(MoseError, match=rf"dataset: {HOLDER}"):
            pack_dataset(config)
        commands = {"finish": finish.COMMAND, "remove": command.COMMAND}
        (tmp_path / "list").write_text("repository-00\n", "utf-8")
        for words in (["finish", str(dataset)], ["remove", str(dataset), "--repositories", str(tmp_path / "list")]):
            assert run_command("mose-data", "", commands, words) == 2
            assert f"process {os.getpid()} of" in capsys.readouterr().err
        # Tasks of an array have their leases.
        pack_dataset(config, task=0)
    assert checksums(dataset) == before
    pack_dataset(config)
    assert not (dataset / WRITER_LOCK).exists()


def test_a_lock_whose_process_is_gone_is_taken_over(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pack_dataset(config)
    path = tmp_path / "dataset" / WRITER_LOCK
    with lock_dataset(tmp_path / "dataset"):
        values = json.loads(path.read_text("utf-8"))
    # The number of this process, begun at another time: the kernel has used the number again.
    path.write_text(json.dumps({**values, "process_start": "1"}), "utf-8")
    pack_dataset(config)
    assert not path.exists()


def test_a_tokenizer_pairs_and_a_part_of_a_store_have_one_writer(tmp_path: Path) -> None:
    sources = SourcesConfig(directories=(str(tmp_path),))
    with lock_file(tmp_path / "tokenizer" / WRITER_LOCK, "it", "one"), pytest.raises(MoseError, match=rf"tokenizer: {HOLDER}"):
        train_tokenizer(TokenizerTrainingConfig(output=str(tmp_path / "tokenizer"), sources=sources))
    with lock_file(tmp_path / ".pairs.parquet.lock", "it", "one"), pytest.raises(MoseError, match=rf"pairs\.parquet: {HOLDER}"):
        build_pairs(PairsConfig(output=str(tmp_path / "pairs.parquet"), sources=sources))
    with BlobWriter(tmp_path / "store", 0):
        with pytest.raises(MoseError, match=rf"part-00000: another process works in this folder: {HOLDER} per part"):
            BlobWriter(tmp_path / "store", 0)
        with BlobWriter(tmp_path / "store", 1):
            pass
    with BlobWriter(tmp_path / "store", 0):
        pass
