"""The config of a run as the run wrote it: what reads a finished run must not compute with a file that was edited since."""

from mose.config import load_config
from mose.errors import MoseError
from mose.files.atomic_file import file_sha256
from mose.files.json_file import parse_json
from mose.run_directory import RunDirectory
from pretrain.config.run import PretrainConfig

DIGEST = "config_sha256"


def load_frozen_config(run: RunDirectory) -> PretrainConfig:
    """Read a run's config.yaml. Runs of early versions recorded no checksum of it; theirs is read as it is.

    Raises:
        MoseError: there is none, or it is not the file that the run wrote.
    """
    if not run.config.is_file():
        raise MoseError(f"{run.config}: no such file; expected a run directory written by `mose-pretrain train`")
    try:
        recorded = parse_json(run.versions.read_bytes()).get(DIGEST)
    except (FileNotFoundError, ValueError, AttributeError):
        recorded = None
    if recorded is not None and recorded != file_sha256(run.config):
        raise MoseError(
            f"{run.config}: was edited after the run wrote it; expected it unchanged ({run.versions.name} holds its checksum), "
            "and changes in a file of their own, for `mose-pretrain train --config`"
        )
    return load_config(PretrainConfig, run.config)
