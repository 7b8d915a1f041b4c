"""A dozen of the benchmark's questions about files, one of each kind, through the whole loop."""

from __future__ import annotations

import pytest

from benchmarks.files import measure
from herd.errors import SandboxError
from tests.serve.conftest import chat_engine


@pytest.mark.slow
def test_code_that_errs_is_mended_files_come_back_and_nothing_gets_out(monkeypatch):
    monkeypatch.setenv("HERD_SECRET", "x")
    try:
        found = measure(chat_engine(max_position_embeddings=8192), 12)
    except SandboxError as error:
        pytest.skip(f"no sandbox: {error}")
    assert found["right"] == found["erred first"] == found["tasks"] == 12, found["failed"]
    assert found["escaped"] == 0
