"""Vocabularies that tiktoken cannot represent: SentencePiece (Llama 1 and 2), byte-level ones with other patterns."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import tokenizers

from herd.errors import DataError
from herd.tokenizer.alphabet import WORD_START, byte_characters, read_bytes, read_piece


class PieceEncoding:
    """A `tokenizer.json` in the `tokenizers` library, with the methods of tiktoken that Herd uses."""

    def __init__(self, content: str, special: dict[str, int], visible: Collection[str] = ()) -> None:
        """`visible` are added tokens that count as text.

        Raises:
            DataError: a pattern in the file backtracks too long on some text.
            Exception: raised by the library if it cannot use the file.
        """
        data = json.loads(content) | {"post_processor": None}
        self._with_special = tokenizers.Tokenizer.from_str(json.dumps(data))
        _try_patterns(self._with_special, data)
        kept = [token for token in data.get("added_tokens") or [] if token["content"] in visible]
        model = data["model"] | {"vocab": _unreachable(data["model"], special.keys() - set(visible))}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": kept, "model": model}))
        own = {token["content"]: self._with_special.token_to_id(token["content"]) for token in kept}
        plain = {self._plain.token_to_id(name): token_id for name, token_id in own.items()}
        self._moved: dict[int, int] = {  # their ids differ because special tokens before them are removed
            i: token_id for i, token_id in plain.items() if i is not None and token_id is not None and i != token_id
        }
        read = read_bytes if is_byte_level(data) else read_piece
        vocabulary = self._with_special.get_vocab(with_added_tokens=True)
        names = {token_id: name for name, token_id in special.items()}
        self._bytes = {i: name.encode() for i, name in names.items()}
        self._bytes |= {i: read(name) for name, i in vocabulary.items() if i not in names}
        self._opens_with_space = adds_a_space(data)
        self.max_token_value = max(self._bytes)

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids: list[int] = _encoded(self._plain, text).ids
        return [self._moved.get(token, token) for token in ids] if self._moved else ids

    def encode(self, text: str, allowed_special: object) -> list[int]:
        """Ids of text whose special strings are tokens."""
        return _encoded(self._with_special, text).ids

    def places(self, text: str, *, allow_special: bool) -> list[tuple[int, int]]:
        """The character range of each id of a text."""
        return _encoded(self._with_special if allow_special else self._plain, text).offsets

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of ids, without the space that SentencePiece puts before every text."""
        joined = b"".join(map(self.decode_single_token_bytes, ids))
        return joined.removeprefix(b" ") if self._opens_with_space else joined

    def decode_single_token_bytes(self, token: int) -> bytes:
        """Bytes of one id; KeyError if it is not in the vocabulary."""
        return self._bytes[token]


def is_byte_level(data: dict) -> bool:
    """Whether all tokens except added ones are written in GPT-2's characters for bytes."""
    alphabet = frozenset(byte_characters().values())
    added = {token["content"] for token in data.get("added_tokens") or []}
    vocabulary = data["model"]["vocab"]
    return (
        isinstance(vocabulary, dict)
        and _decodes_bytes(data.get("decoder") or {})
        and all(alphabet.issuperset(token) for token in vocabulary if token not in added)
    )


def _decodes_bytes(decoder: dict) -> bool:
    return any(step.get("type") == "ByteLevel" for step in decoder.get("decoders", [decoder]))


def adds_a_space(data: dict) -> bool:
    """Whether a space is put before a text, as by SentencePiece, in the normalizer or the pre-tokenizer."""
    normalizer = data.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" and step.get("prepend") == WORD_START for step in steps):
        return True
    pre_tokenizer = data.get("pre_tokenizer") or {}
    return pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme", "always") != "never"


def places_of(text: str, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """The character range of each token of a text, from the tokens' lengths in bytes."""
    content = np.frombuffer(_valid(text).encode(), dtype=np.uint8)
    begun = np.concatenate([[0], np.cumsum((content & 0xC0) != 0x80)])  # characters begun before each byte
    last = np.cumsum(sizes, dtype=np.int64)
    first = last - np.asarray(sizes, dtype=np.int64)
    starts = np.where((content[first] & 0xC0) == 0x80, begun[first] - 1, begun[first]) if len(first) else first
    return list(zip(starts.tolist(), begun[last].tolist()))


def split_merges(pairs: list[str] | list[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Merges as pairs; older files write them as one string with a space."""
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]


def _unreachable(model: dict, special: Collection[str]) -> list | dict:
    """The vocabulary with special tokens renamed to strings that occur in no text: Unigram, and BPE that looks up whole
    pieces first, would otherwise find them in plain text."""
    if isinstance(model["vocab"], list):
        return [[_hidden(i) if name in special else name, score] for i, (name, score) in enumerate(model["vocab"])]
    if not model.get("ignore_merges"):
        return model["vocab"]
    kept = model.get("unk_token")
    return {_hidden(i) if name in special and name != kept else name: i for name, i in model["vocab"].items()}


def _hidden(row: int) -> str:
    return f"\ufdd0{row}"


_PROBED = "aZ1 \n!_\u6f22"  # one of each kind of character that patterns distinguish
_PROBE_LENGTHS = (8, 16, 18, 20, 22, 24, 32, 64, 128, 256, 512)
_PROBE_SECONDS = 0.05  # CPU time; real vocabularies take a hundredth of it


def _try_patterns(tokenizer: tokenizers.Tokenizer, data: dict) -> None:
    """Refuse patterns with catastrophic backtracking, by trying longer and longer runs of one character.

    Raises:
        DataError: one takes far longer than any real pattern.
    """
    written = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    if '"Regex"' not in written:
        return
    named = sorted({character for pattern in _patterns(json.loads(written)) for character in pattern[:200]})
    tail = "".join(named[:50])  # without a letter that the pattern requires, a match fails at once
    for length in _PROBE_LENGTHS:
        for character in dict.fromkeys([*_PROBED, *named[:50]]):
            text, began = f"{character * length}\ufdd1{tail}", time.thread_time()
            try:
                if tokenizer.normalizer is not None:
                    tokenizer.normalizer.normalize_str(text)
                if tokenizer.pre_tokenizer is not None:
                    tokenizer.pre_tokenizer.pre_tokenize_str(text)
            except BaseException as error:
                if type(error).__name__ != "PanicException":
                    raise
                seconds = _PROBE_SECONDS
            else:
                seconds = time.thread_time() - began
            if seconds >= _PROBE_SECONDS:
                raise DataError(
                    f"a pattern in tokenizer.json backtracks too long: {seconds * 1e3:.0f} ms for {length} times "
                    f"{character!r}; use a tokenizer without such patterns"
                )


def _patterns(steps: object) -> Iterator[str]:
    if isinstance(steps, dict):
        if isinstance(steps.get("Regex"), str):
            yield steps["Regex"]
        steps = list(steps.values())
    if isinstance(steps, list):
        for step in steps:
            yield from _patterns(step)


def _encoded(tokenizer: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    try:
        return tokenizer.encode(_valid(text), add_special_tokens=False)
    except BaseException as error:  # the library panics if a pattern gives up on a text
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"a pattern in tokenizer.json gives up on a text of {len(text):,} characters ({str(error)[:100]}); "
            "use a tokenizer without such patterns"
        ) from None


def _valid(text: str) -> str:
    """The text with lone surrogates, which are invalid, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
