"""The files that filters read, lists of opt-outs and evaluation sets: their content is part of what a data set is."""

import hashlib

from data_prep.filters.decontamination import DecontaminationConfig
from data_prep.filters.filters import FiltersConfig
from data_prep.filters.opt_out import load_opt_out
from mose.config import fingerprint
from mose.errors import MoseError
from mose.files.storage import storage_path


def filters_fingerprint(filters: FiltersConfig, decontamination: DecontaminationConfig) -> str:
    """Changes when what stands in the opt-out lists or in the evaluation files does; where these lie does not count.

    Lists count by their entries, evaluation files by name and bytes.

    Raises:
        MoseError: one of these files cannot be read, or a line of an opt-out list is wrong.
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
