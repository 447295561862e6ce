"""What every test runs under: one thread, no network, quiet libraries, and no deadline for hypothesis on a busy machine."""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "MPLBACKEND": "Agg",
}


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test imports numpy or torch; commands that tests start inherit it."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    if not hasattr(config, "workerinput"):
        # The key that signs checkpoints is made here, and not in the user's own state directory.
        os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="mose-state-")
    settings.register_profile("mose", deadline=None)
    settings.load_profile("mose")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the state directory of the tests."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)
