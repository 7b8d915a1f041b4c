"""Detecting a file whose end was never written: an interrupted copy leaves zeros in preallocated space."""

from __future__ import annotations

from pathlib import Path

from herd.errors import CheckpointError

_PADDED = ("embed_tokens", "lm_head", "token_embd", "output.weight")
"""Matrices whose last rows may belong to no token and be zero."""


def check_tail(file: Path, tensors: dict[str, tuple[int, tuple[int, ...]]]) -> None:
    """Check the end of the last weight in a file; `tensors` gives the first byte and the shape of each.

    Raises:
        CheckpointError: it is all zero.
    """
    weights = {name: place for name, place in tensors.items() if name.endswith("weight") and 0 not in place[1]}
    if not weights:
        return
    name = max(weights, key=lambda name: weights[name][0])
    begin, shape = weights[name]
    later = [place[0] for place in tensors.values() if place[0] > begin]
    end = min(later, default=file.stat().st_size)
    rows = shape[0] if len(shape) > 1 else 1
    looked_at = (end - begin) // 2 if any(part in name for part in _PADDED) else (end - begin) // rows
    with open(file, "rb") as stream:
        stream.seek(end - looked_at)
        while looked_at > 0 and (piece := stream.read(min(looked_at, 1 << 20))):
            if piece.count(0) != len(piece):
                return
            looked_at -= len(piece)
    raise CheckpointError(
        f"{file} is incomplete: its last weight, {name}, ends in zeros. A copy or download was probably interrupted; "
        "copy or download it again."
    )
