"""Vocabularies that tiktoken cannot hold: SentencePiece's (Llama 1 and 2), byte-level ones that cut in other ways."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import tokenizers

from herd.errors import DataError
from herd.tokenizer.alphabet import WORD_START, byte_characters, read_bytes, read_piece


class PieceEncoding:
    """A `tokenizer.json` through the `tokenizers` library, behind the few methods that Herd uses of tiktoken's."""

    def __init__(self, content: str, special: dict[str, int], visible: Collection[str] = ()) -> None:
        """`visible` are added tokens that count as text.

        Raises:
            DataError: a pattern of the file's takes for ever on some text.
            Exception: (the library's own) it cannot use the file.
        """
        data = json.loads(content) | {"post_processor": None}
        self._with_special = tokenizers.Tokenizer.from_str(json.dumps(data))
        _try_patterns(self._with_special, data)
        kept = [token for token in data.get("added_tokens") or [] if token["content"] in visible]
        model = data["model"] | {"vocab": _unreachable(data["model"], special.keys() - set(visible))}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": kept, "model": model}))
        own = {token["content"]: self._with_special.token_to_id(token["content"]) for token in kept}
        found = {self._plain.token_to_id(name): token_id for name, token_id in own.items()}
        self._moved: dict[int, int] = {  # special ones before them are gone
            i: token_id for i, token_id in found.items() if i is not None and token_id is not None and i != token_id
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
        """Ids of text whose special strings count as tokens."""
        return _encoded(self._with_special, text).ids

    def places(self, text: str, *, allow_special: bool) -> list[tuple[int, int]]:
        """From where to where each id of a text stands in it, in characters."""
        return _encoded(self._with_special if allow_special else self._plain, text).offsets

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of ids, without the space that SentencePiece puts before every text."""
        joined = b"".join(map(self.decode_single_token_bytes, ids))
        return joined.removeprefix(b" ") if self._opens_with_space else joined

    def decode_single_token_bytes(self, token: int) -> bytes:
        """Bytes of one id as it stands; KeyError when it is not in the vocabulary."""
        return self._bytes[token]


def is_byte_level(data: dict) -> bool:
    """Whether the tokens are named in GPT-2's characters for bytes, all but the added ones."""
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
    """Whether SentencePiece's habit of opening a text with a space is on: in the normalizer or in the pre-tokenizer."""
    normalizer = data.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" and step.get("prepend") == WORD_START for step in steps):
        return True
    pre_tokenizer = data.get("pre_tokenizer") or {}
    return pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme", "always") != "never"


def places_of(text: str, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where each token of a text begins and ends in characters, from the tokens' lengths in bytes."""
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
    """The rows with special tokens under names that no text holds: Unigram, and BPE that takes whole pieces first,
    would find them in a text by their own."""
    if isinstance(model["vocab"], list):
        return [[_hidden(i) if name in special else name, score] for i, (name, score) in enumerate(model["vocab"])]
    if not model.get("ignore_merges"):
        return model["vocab"]
    kept = model.get("unk_token")
    return {_hidden(i) if name in special and name != kept else name: i for name, i in model["vocab"].items()}


def _hidden(row: int) -> str:
    return f"\ufdd0{row}"


_PROBED = "aZ1 \n!_\u6f22"  # kinds of characters that patterns tell apart
_PROBE_LENGTHS = (8, 16, 18, 20, 22, 24, 32, 64, 128, 256, 512)
_PROBE_SECONDS = 0.05  # of the processor; vocabularies in use take a hundredth of it


def _try_patterns(tokenizer: tokenizers.Tokenizer, data: dict) -> None:
    """Refuse patterns that backtrack without end: on longer and longer runs of one character that end otherwise.

    Raises:
        DataError: one takes far longer than any pattern in use.
    """
    written = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    if '"Regex"' not in written:
        return
    named = sorted({character for pattern in _patterns(json.loads(written)) for character in pattern[:200]})
    tail = "".join(named[:50])  # a text without a letter that the pattern asks for is passed over at once
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
                    f"a pattern in tokenizer.json takes {seconds * 1e3:.0f} ms or more for {length} times "
                    f"{character!r}; use a tokenizer whose patterns do not backtrack without end"
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
    except BaseException as error:  # the library panics where a pattern of the file's gives up on a text
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"a pattern in tokenizer.json gives up on a text of {len(text):,} characters ({str(error)[:100]}); "
            "use a tokenizer whose patterns do not backtrack without end"
        ) from None


def _valid(text: str) -> str:
    """Lone surrogates, which are no Unicode text, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
