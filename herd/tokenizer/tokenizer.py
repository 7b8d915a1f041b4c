"""Text to token ids and back, with Llama 3's vocabulary or any other in a checkpoint."""

from __future__ import annotations

import base64
import hashlib
import operator
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import tiktoken

from herd.errors import ConfigError, DataError
from herd.tokenizer import bpe
from herd.tokenizer.beside import with_template
from herd.tokenizer.pieces import PieceEncoding, places_of
from herd.tokenizer.pretokens import count_pretokens
from herd.tokenizer.specials import (
    BEGIN_OF_TEXT,
    END_OF_MESSAGE,
    END_OF_TEXT,
    END_OF_TURN,
    NUM_SPECIAL_TOKENS,
    PAD,
    SPLIT_PATTERN,
    special_tokens,
)
from herd.tokenizer.template import META_TEMPLATE
from herd.tokenizer.workers import Workers, in_parts, num_cores

# Meta's limits: tiktoken's Rust core overflows on longer texts and slows down quadratically on longer runs.
MAX_ENCODE_CHARS = 400_000
MAX_RUN_CHARS = 25_000
_WORTH_WORKERS_CHARS = 16_000_000  # encoded in batches by one tokenizer, before other processes are started
_PARTS = (
    *("ranks", "special", "pieces", "bos", "eos", "pad", "chat_template", "tool_template", "named"),
    *("visible", "add_bos", "ends", "beside"),
)
_PART_CHARS = 500_000  # sent to a process at a time
_RUNS = re.compile(r"\s+|\S+")


class Tokenizer:
    """A byte-level BPE vocabulary with its special tokens.

    Special strings inside text are plain text unless `allow_special` is set, so that no user can forge a turn.

    Example:
        >>> tokenizer = Tokenizer.train(["Hello, hello"], vocab_size=520)
        >>> tokenizer.decode(tokenizer.encode("Hello"))
        'Hello'
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        special: dict[str, int] | None = None,
        *,
        pieces: str | None = None,
        bos: str | None = BEGIN_OF_TEXT,
        eos: str | None = END_OF_TEXT,
        pad: str | None = None,
        chat_template: str | None = META_TEMPLATE,
        tool_template: str | None = None,
        named: Mapping[str, Any] | None = None,
        visible: Iterable[str] = (),
        add_bos: bool = True,
        ends: Iterable[str] = (),
        beside: Mapping[str, bytes] | None = None,
    ) -> None:
        """A vocabulary from its ranks: bytes of a token -> its rank, which is also its id.

        `pieces` is the content of a `tokenizer.json` instead, for vocabularies that ranks cannot express. `special` are
        the tokens not made by merges; those in `visible` count as text (`<think>`): they are recognized in all texts
        and kept in answers. `bos` is put before a text if `add_bos`. `ends` end an answer, besides `eos`.
        `tool_template` is a separate template for conversations with tools; `named` are tokens that templates refer to
        by name (`unk_token`). `beside` are the files that it was read from, which are saved unchanged.

        Raises:
            DataError: the arguments contradict each other.
        """
        self.ranks = ranks
        self.special = special_tokens(len(ranks)) if special is None else special
        self.pieces = pieces
        self.bos, self.eos, self.pad = bos, eos, pad
        self.chat_template, self.tool_template = chat_template, tool_template
        self.named = dict(named or {})
        self.visible, self.ends = frozenset(visible), tuple(ends)
        self.add_bos = add_bos and bos is not None
        self.beside = beside
        self._encoding = self._check_and_build()
        self._workers: Workers | None = None
        self._one_batch = threading.Lock()
        self._num_batched_chars = 0

    def _check_and_build(self) -> tiktoken.Encoding | PieceEncoding:
        taken = {rank for rank in self.special.values() if rank < len(self.ranks)}
        if taken or len(set(self.special.values())) < len(self.special):
            raise DataError("the ids of special tokens collide with other rows of the vocabulary")
        if "" in self.special:
            raise DataError(f"the special token {self.special['']} has an empty name, which would match everywhere")
        for role, name in (("bos_token", self.bos), ("eos_token", self.eos)):
            if name is not None and name not in self.special:
                raise DataError(f"the {role} {name} is not among the special tokens")
        try:
            if self.pieces is not None:
                return PieceEncoding(self.pieces, self.special, self.visible)
            return tiktoken.Encoding(
                "herd", pat_str=SPLIT_PATTERN, mergeable_ranks=self.ranks, special_tokens=self.special
            )
        except DataError:
            raise
        except Exception as error:  # both libraries raise bare exceptions for bad files
            raise DataError(f"the vocabulary cannot be used: {error}") from None

    # ---- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, max_pretokens: int = 4_000_000) -> Tokenizer:
        """Learn a vocabulary of `vocab_size` tokens (256 bytes + merges + 256 special tokens) from a stream of texts.

        Texts too small for that many merges give a smaller vocabulary. At most `max_pretokens` distinct pre-tokens are
        kept in memory. The result depends only on the texts.

        Raises:
            ConfigError: `vocab_size` is too small for the bytes and the special tokens.
        """
        _check_vocab_size(vocab_size)
        counts = count_pretokens(texts, max_distinct=max_pretokens)
        return cls.from_counts(counts.words, vocab_size)

    @classmethod
    def from_counts(
        cls, words: Mapping[str, int], vocab_size: int, advance: Callable[[int], object] = lambda merges: None
    ) -> Tokenizer:
        """Learn a vocabulary from counts of pre-tokens; `advance` is called for each new token.

        Raises:
            ConfigError: `vocab_size` is too small for the bytes and the special tokens.
        """
        _check_vocab_size(vocab_size)
        return cls(bpe.train(words, vocab_size - NUM_SPECIAL_TOKENS, advance))

    def with_template(self, chat_template: str | None) -> Tokenizer:
        """The same vocabulary with another chat template."""
        files = with_template(self.beside, chat_template)
        return Tokenizer(
            **self.__getstate__() | {"chat_template": chat_template, "tool_template": None, "beside": files}
        )

    def template_for(self, tools: bool) -> str | None:
        """The chat template; with `tools` the one for conversations with tools, if there is one."""
        return self.tool_template if tools and self.tool_template is not None else self.chat_template

    # ---- properties --------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._encoding.max_token_value + 1

    @property
    def bos_id(self) -> int:
        """The token that begins a sequence; EOS if the vocabulary has no BOS, as GPT-2's."""
        return self.eos_id if self.bos is None else self.special[self.bos]

    @property
    def opening(self) -> list[int]:
        """The ids before every text: BOS, or none if the checkpoint does not add it."""
        return [self.bos_id] if self.add_bos else []

    @property
    def eos_id(self) -> int:
        """The token that ends a document: Llama 3's end of text, or else the checkpoint's EOS."""
        name = END_OF_TEXT if END_OF_TEXT in self.special else self.eos
        if name is None:
            raise DataError("this vocabulary has no EOS token; add `eos_token` to its tokenizer_config.json")
        return self.special[name]

    @property
    def eot_id(self) -> int:
        """The token that ends a turn."""
        return self.chat_token(END_OF_TURN)

    @property
    def eom_id(self) -> int:
        """The token that ends a message but not the turn: a tool is to be run."""
        return self.chat_token(END_OF_MESSAGE)

    def chat_token(self, name: str) -> int:
        """The id of a special token of the chat format.

        Raises:
            DataError: the vocabulary lacks it.
        """
        if name not in self.special:
            raise DataError(f"this vocabulary has no {name}, so Llama 3's chat format cannot be used with it")
        return self.special[name]

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return self.special[self.pad] if self.pad in self.special else self.special.get(PAD, self.eos_id)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end generation (Llama 3: 128001, 128008, 128009)."""
        names = (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN, self.eos, *self.ends)
        return tuple(sorted({self.special[name] for name in names if name in self.special}))

    @property
    def chat_style(self) -> str:
        """The style of Llama 3's format: `hf` if the checkpoint's template writes date lines, else `meta`."""
        return "hf" if "Today Date" in (self.chat_template or "") else "meta"

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of special tokens that do not count as text."""
        return frozenset(token_id for name, token_id in self.special.items() if name not in self.visible)

    @cached_property
    def special_strings(self) -> re.Pattern[str] | None:
        """A pattern that matches the special tokens that do not count as text; None if there are none."""
        names = sorted((name for name in self.special if name not in self.visible), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    @cached_property
    def named_tokens(self) -> dict[str, Any]:
        """The tokens that templates refer to by name: `bos_token`, `eos_token`, `pad_token` and others."""
        roles = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        return {role: name for role, name in roles.items() if name is not None} | self.named

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines ids: the vocabulary and its special tokens."""
        digest = hashlib.sha256((self.pieces or SPLIT_PATTERN).encode())
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(base64.b64encode(token) + b" %d\n" % rank)
        for name, token_id in sorted(self.special.items()):
            digest.update(f"{name} {token_id}\n".encode())
        for name in sorted(self.visible):
            digest.update(f"visible {name}\n".encode())
        return digest.hexdigest()

    # ---- encode ------------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """The ids of a text, optionally with BOS and EOS.

        `allow_special` reads special strings in the text as special tokens: only for text that you wrote yourself.

        Raises:
            DataError: it is not a string.
        """
        if not isinstance(text, str):
            raise DataError(f"only text can be encoded, not {type(text).__name__}")
        encode = self._encode_special if allow_special else self._encode_plain
        ids = self.opening if bos else []
        for piece in _within_limits(text):
            ids += encode(piece)
        if eos:
            ids.append(self.eos_id)
        return ids

    def _encode_special(self, text: str) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def _encode_plain(self, text: str) -> list[int]:
        if self.visible and isinstance(self._encoding, tiktoken.Encoding):
            return self._encoding.encode(text, allowed_special=self.visible, disallowed_special=())
        return self._encoding.encode_ordinary(text)

    def encode_places(self, text: str, *, allow_special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and their character ranges."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        begin = 0
        for piece in _within_limits(text):
            piece_ids = self.encode(piece, allow_special=allow_special)
            if isinstance(self._encoding, PieceEncoding):
                where = self._encoding.places(piece, allow_special=allow_special)
            else:
                where = places_of(piece, [len(self.token_bytes(token)) for token in piece_ids])
            ids += piece_ids
            places += [(begin + first, begin + last) for first, last in where]
            begin += len(piece)
        return ids, places

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False, allow_special: bool = False
    ) -> list[list[int]]:
        """The ids of many texts, in order; on all cores if there is much to do.

        Raises:
            DataError: one of them is not a string.
        """
        arrays = self.encode_arrays(texts, bos=bos, eos=eos, allow_special=allow_special)
        return [array.tolist() for array in arrays]

    def encode_arrays(
        self, texts: Sequence[str], *, bos: bool = False, eos: bool = False, allow_special: bool = False
    ) -> list[np.ndarray]:
        """The same as arrays of uint32, for corpora, where lists would cost as much as the encoding."""
        options = {"bos": bos, "eos": eos, "allow_special": allow_special}
        _check_texts(texts)
        num_chars = sum(map(len, texts))
        self._num_batched_chars += num_chars
        if self._num_batched_chars < _WORTH_WORKERS_CHARS or len(texts) < 2 or num_cores() < 2:
            return [self._encode_array(text, **options) for text in texts]
        with self._one_batch:
            if self._workers is None or not self._workers.usable:
                self._workers = Workers(self._encode_packed)
            part_chars = min(_PART_CHARS, num_chars // (4 * num_cores()) + 1)
            packed = self._workers.map((part, options) for part in in_parts(texts, part_chars))
            return [ids[begin:end] for ids, ends in packed for begin, end in pairwise([0, *ends])]

    def _encode_packed(self, work: tuple[list[str], dict[str, bool]]) -> tuple[np.ndarray, list[int]]:
        """The ids of all texts concatenated, and where each text ends."""
        texts, options = work
        arrays = [self._encode_array(text, **options) for text in texts]
        return np.concatenate(arrays), list(accumulate(map(len, arrays)))

    def _encode_array(self, text: str, *, bos: bool, eos: bool, allow_special: bool) -> np.ndarray:
        """As `encode`, without Python integers."""
        if allow_special or self.visible or not isinstance(self._encoding, tiktoken.Encoding):
            return np.array(self.encode(text, bos=bos, eos=eos, allow_special=allow_special), dtype=np.uint32)
        parts = [np.array(self.opening, dtype=np.uint32)] if bos else []
        for piece in _within_limits(text):
            try:
                parts.append(self._encoding.encode_to_numpy(piece, disallowed_special=()))
            except UnicodeEncodeError:  # lone surrogates, which `encode_ordinary` replaces
                parts.append(np.array(self._encoding.encode_ordinary(piece), dtype=np.uint32))
        if eos:
            parts.append(np.array([self.eos_id], dtype=np.uint32))
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PARTS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)

    # ---- decode ------------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ids; incomplete characters become U+FFFD."""
        if skip_special:
            special = self.special_ids
            ids = [i for i in _checked_ids(ids) if i not in special]
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        ids = _checked_ids(ids)
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError):
            raise DataError(self._unknown(ids)) from None

    def token_bytes(self, token: int, default: bytes | None = None) -> bytes:
        """The bytes of one token; a special token's are its name.

        Raises:
            DataError: the id is not in the vocabulary and no `default` is given.
        """
        try:
            return self._encoding.decode_single_token_bytes(token)
        except (KeyError, OverflowError):
            if default is None:
                raise DataError(self._unknown([token])) from None
            return default
        except TypeError:
            raise DataError(f"a token id is an integer, not {_shown(token)}") from None

    def _unknown(self, ids: Sequence[int]) -> str:
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), ids[0])
        return (
            f"token id {wrong} is not in this vocabulary (0 to {self.vocab_size - 1}); "
            "were the ids made with another tokenizer?"
        )

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size - len(self.special)} BPE rows + {len(self.special)} special tokens)"


def _checked_ids(ids: Iterable[int]) -> list[int]:
    """Ids as Python integers, from any integer type."""
    try:
        return list(map(operator.index, ids))
    except TypeError:
        raise DataError(f"only a sequence of token ids can be decoded, not {_shown(ids)}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_vocab_size(vocab_size: int) -> None:
    least = bpe.NUM_BYTES + NUM_SPECIAL_TOKENS
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small: {bpe.NUM_BYTES} bytes and {NUM_SPECIAL_TOKENS} special tokens "
            f"need {least}, and each token above that is one merge. Try 8192."
        )


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise DataError(f"encode_batch takes a list of texts, not {type(texts).__name__}")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {number} is {type(text).__name__}: only text can be encoded")


def _within_limits(text: str) -> Iterator[str]:
    """Split a text as Meta's tokenizer does: every 400,000 characters, and in runs of over 25,000.

    A run is a section of only whitespace, or only other characters.
    """
    for start in range(0, len(text), MAX_ENCODE_CHARS):
        piece = text[start : start + MAX_ENCODE_CHARS]
        cut_from = 0
        for run in _RUNS.finditer(piece) if _may_have_long_run(piece) else ():
            for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS):
                yield piece[cut_from:cut]
                cut_from = cut
        yield piece[cut_from:]


def _may_have_long_run(text: str) -> bool:
    """Whether some aligned block of half the limit is all of one kind, as in every run above the limit.

    In ordinary text each check ends at the first space of a block, so this is very cheap.
    """
    size = MAX_RUN_CHARS // 2
    blocks = (text[i : i + size] for i in range(0, len(text) - size, size))
    return any(len(block.split(maxsplit=1)) < 2 for block in blocks)
