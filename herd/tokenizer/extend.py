"""Extending a vocabulary, as Llama 3 extended tiktoken's 100k tokens by 28k for other languages.

The base keeps its tokens, ids and ranks; new merges are appended, so text without them is encoded as before. Special
tokens move up by the number of new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from herd.errors import DataError
from herd.tokenizer.bpe import grow
from herd.tokenizer.pretokens import count_pretokens
from herd.tokenizer.tokenizer import Tokenizer


def extend(
    base: Tokenizer,
    texts: Iterable[str],
    num_merges: int,
    *,
    max_pretokens: int = 4_000_000,
) -> Tokenizer:
    """The base with `num_merges` further merges (fewer if no pair is left), learned from a stream of texts.

    Raises:
        DataError: the base has no tiktoken ranks (as Llama 1's and 2's).
    Source: The Llama 3 Herd of Models, section 3.2.
    """
    return extend_from_counts(base, count_pretokens(texts, max_distinct=max_pretokens).words, num_merges)


def extend_from_counts(
    base: Tokenizer,
    words: Mapping[str, int],
    num_merges: int,
    advance: Callable[[int], object] = lambda merges: None,
) -> Tokenizer:
    """The same from counts of pre-tokens; `advance` is called for each merge."""
    if base.pieces is not None:
        raise DataError("only a vocabulary of tiktoken ranks can be extended, not a SentencePiece one")
    ranks = grow(base.ranks, *_encoded(base, words), len(base.ranks) + num_merges, advance)
    shift = len(ranks) - len(base.ranks)
    special = {name: token_id + shift for name, token_id in base.special.items()}
    kept = ("bos", "eos", "pad", "chat_template", "visible", "add_bos", "ends")
    return Tokenizer(ranks, special, **{name: getattr(base, name) for name in kept})


def _encoded(base: Tokenizer, words: Mapping[str, int]) -> tuple[list[list[int]], list[int]]:
    """The words that the base splits into several tokens, as its ids, with their counts."""
    encoded = ((base.encode(word), count) for word, count in words.items())
    kept = [(ids, count) for ids, count in encoded if len(ids) > 1]
    return [ids for ids, _ in kept], [count for _, count in kept]
