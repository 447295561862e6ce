"""The fingerprint of the files that filters read, opt-out lists and evaluation files, whose content shapes a data set."""

import hashlib

from data_prep.filters.config import FiltersConfig
from data_prep.filters.decontamination import DecontaminationConfig
from data_prep.filters.opt_out import load_opt_out
from mose.config import fingerprint
from mose.errors import MoseError
from mose.files.storage import storage_path


def filters_fingerprint(filters: FiltersConfig, decontamination: DecontaminationConfig) -> str:
    """A hash of the entries of the opt-out lists, and of the names and bytes of the evaluation files.

    Independent of folders, so that files can move between runs.

    Raises:
        MoseError: one of these files cannot be read, or a line of an opt-out list is invalid.
    """
    opt_out = load_opt_out(filters.opt_out)
    names = sorted(opt_out.repositories), sorted(blob.hex() for blob in opt_out.blobs)
    files = [(storage_path(file).name, _digest(file)) for file in decontamination.files]
    return fingerprint({"opt_out": names, "decontamination": files})


def _digest(file: str) -> str:
    digest = hashlib.sha256()
    try:
        with storage_path(file).open("rb") as stored:
            while block := stored.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise MoseError(f"{file}: cannot be read: {error.strerror or error}; expected an evaluation file") from None
    return digest.hexdigest()
