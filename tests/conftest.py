"""What every test may use: the shared real data, and one thread of arithmetic so that figures repeat."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HERD_QUIET", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("no hurry", settings(), deadline=None)  # a busy machine is no fault
settings.load_profile("no hurry")

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is not there."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder (../shared/data) is not here")
    return SHARED_DATA
