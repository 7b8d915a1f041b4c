"""The engine's kernels as this processor and as a smaller one has them."""

from __future__ import annotations

import ctypes
import functools
from unittest.mock import patch

import pytest

from herd.kernels import decoding, native

KINDS = ["this processor's kernels", "AVX2 alone"]


def use(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test compute with these kernels; skip it where there are none."""
    if not decoding.wait():
        pytest.skip(decoding.status())
    if kind == KINDS[1]:
        monkeypatch.setattr(decoding, "_library", _by_avx2())


@functools.cache
def _by_avx2() -> ctypes.CDLL:
    with patch.dict("os.environ", HERD_NATIVE="avx2"):
        found = native.library.__wrapped__("decoding")
    decoding.declare(found)
    return found
