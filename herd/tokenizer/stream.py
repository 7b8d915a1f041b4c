"""Decoding tokens one by one."""

from __future__ import annotations

import codecs

from herd.tokenizer.tokenizer import Tokenizer


class TextStream:
    """Decodes a stream of ids into whole characters.

    A token may end in the middle of a UTF-8 character; incomplete characters wait for the next token. All pieces
    together equal `tokenizer.decode(ids, skip_special=skip_special)`, except for the space that Llama 1 and 2 put
    before a text, which is kept. `skip_unknown` skips ids that are not in the vocabulary, which a model with unused
    rows may sample.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, skip_unknown: bool = False) -> None:
        self._token_bytes, self._unknown = tokenizer.token_bytes, b"" if skip_unknown else None
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that this token completes, possibly none."""
        return "" if token in self._skipped else self._decoder.decode(self._token_bytes(token, self._unknown))

    def flush(self) -> str:
        """The rest at the end: a replacement character if the last character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)
