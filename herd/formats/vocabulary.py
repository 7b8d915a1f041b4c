"""Opening a tokenizer by its path, without importing PyTorch."""

from __future__ import annotations

from pathlib import Path

from herd.formats.gguf import first_part, is_gguf, read_gguf
from herd.formats.gguf_vocabulary import read_vocabulary
from herd.formats.places import gguf_files
from herd.tokenizer.io import find_vocabulary, load_tokenizer
from herd.tokenizer.tokenizer import Tokenizer


def open_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a checkpoint, tokenizer or run folder, a GGUF file, a `tokenizer.json` or tiktoken ranks.

    Raises:
        DataError: there is none, or it is damaged or of a kind that is not supported.
        CheckpointError: the GGUF file is damaged.
    """
    path = Path(path)
    if is_gguf(path):
        return read_vocabulary(read_gguf(first_part(path)))
    if path.is_dir() and find_vocabulary(path) is None:
        files = [file for file in gguf_files(path) if first_part(file) == file]
        if len(files) == 1:
            return read_vocabulary(read_gguf(files[0]))
    return load_tokenizer(path)
