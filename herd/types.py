"""The data types that rooms exchange; importable without PyTorch.

Letters for shapes, everywhere: B rows, T tokens, D hidden, H query heads, K key-value heads, C channels of a head, F
feed-forward, V vocabulary, N documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""The label of a token without loss (the value that PyTorch and `transformers` use)."""


class ToolCall(TypedDict):
    """A tool call of the assistant: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


class AttachedFile(TypedDict, total=False):
    """A file that came with a message: kept here under an id, or held whole."""

    id: str
    name: str
    data: bytes


class Message(TypedDict, total=False):
    """One message of a conversation. Roles: `system`, `user`, `assistant`, `ipython` (a tool's result)."""

    role: str
    content: str
    tool_calls: list[ToolCall]
    files: list[AttachedFile]  # of a request, until they are told as text


Conversation = list[Message]

DOCUMENT_COLUMNS: dict[str, str] = {
    "id": "string",  # content hash of the raw page: stable across runs
    "url": "string",
    "date": "string",  # ISO 8601 of the crawl or the file, empty when unknown
    "title": "string",
    "text": "large_string",
    "language": "string",  # ISO 639-1, empty when unknown
    "source": "string",  # which collection: `pydoc`, `library`, `web`, `files`...
    "group": "string",  # documents of a group stay on one side of a train/held-out split: a module, a repository
    "place": "string",  # where the page was read: the file, then `#` and the byte offset (WARC), line or row
    "quality": "float",  # 0 to 1, larger is better
    "drop": "string",  # the reason the document was dropped, null for the ones kept
    "drop_detail": "string",  # the figure or span behind the reason, null for the ones kept
}
"""The schema of documents on disk (Parquet): column -> Arrow type name."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of packed rows.

    Several documents share a row; attention never crosses from one to another and positions restart with each.
    """

    tokens: Tensor  # (B, T) int64
    labels: Tensor  # (B, T) int64: the token to predict at each position, IGNORE for no loss
    positions: Tensor  # (B, T) int64: position within the document
    document_ids: Tensor  # (B, T) int32: which document of the row a token belongs to, -1 for padding
    columns: dict[str, Tensor] = field(default_factory=dict)  # further inputs of an objective: pairs, log-probabilities

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        moved = {name: column.to(device, non_blocking=True) for name, column in self.columns.items()}
        tensors = {n: getattr(self, n).to(device, non_blocking=True) for n in _BATCH_TENSORS}
        return Batch(columns=moved, **tensors)


_BATCH_TENSORS = ("tokens", "labels", "positions", "document_ids")


class Loss(NamedTuple):
    """What an objective returns: sums, so that the mean over unequal micro-batches takes one global division."""

    sum: Tensor  # () total over this micro-batch
    count: Tensor  # type: ignore[assignment]  # () number of summed items (tokens or pairs); shadows tuple.count
    metrics: dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count), reduced like the loss


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled. Temperature 0 is greedy.

    The defaults are Llama 3.1's own generation settings (temperature 0.6, top-p 0.9). At most one of `json_schema`,
    `regex`, `grammar` and `choice` may constrain the answer's form; every token then follows it.
    """

    temperature: float = 0.6
    top_k: int = 0  # keep the k likeliest tokens, 0 keeps all
    top_p: float = 0.9  # keep the smallest set of tokens with this total probability
    min_p: float = 0.0  # drop tokens below this share of the likeliest one's probability
    max_tokens: int = 256
    n: int = 1  # answers per prompt
    seed: int | None = None  # the same seed gives the same answer; None takes a random one
    stop: tuple[str, ...] = ()  # strings that end the answer and are not part of it
    logprobs: int | None = None  # also return log-probabilities: of the sampled token and of this many likeliest ones
    repetition_penalty: float = 1.0  # divides positive logits (multiplies negative) of tokens in prompt and answer
    presence_penalty: float = 0.0  # subtracted from the logit of every token that the answer contains
    frequency_penalty: float = 0.0  # subtracted from a token's logit for each of its occurrences in the answer
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # token id -> added to its logit
    min_tokens: int = 0  # no stop token is sampled, and no stop string ends the answer, before this many tokens
    ignore_eos: bool = False  # the model's own stop tokens end nothing; only lengths, stop strings and stop_token_ids
    stop_token_ids: tuple[int, ...] = ()  # further tokens that end the answer
    best_of: int | None = None  # sample this many answers, return the n of highest mean log-probability
    prompt_logprobs: int | None = None  # also return the prompt's log-probabilities, with this many likeliest tokens
    json_schema: Mapping[str, Any] | None = field(default=None, hash=False)  # {} is any JSON object
    regex: str | None = None  # Rust's syntax
    grammar: str | None = None  # a Lark grammar, as llguidance reads it
    choice: tuple[str, ...] = ()  # the answer is one of these strings
    adapter: str | None = None  # name of the LoRA adapter that answers; None is the model itself

    def __post_init__(self) -> None:
        for name in ("stop", "choice", "stop_token_ids"):  # one string, or a list, as OpenAI's clients send it
            value = getattr(self, name)
            if isinstance(value, str | list):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @property
    def num_drawn(self) -> int:
        """Number of sampled answers: `n`, or `best_of` if that is more."""
        return max(self.n, self.best_of or 0)


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token: its natural log-probability, and the likeliest ones as (id, log-probability)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One answer. `finish_reason` is `stop` (the model or a stop string ended it), `length` or `cancelled`.

    The first entry of `prompt_logprobs` is None: nothing comes before the first token. `repetition` is the share (0 to
    1) of the answer's token 4-grams that occurred in it before.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprobs: list[TokenLogprob] | None
    prompt_tokens: int
    prompt_logprobs: list[TokenLogprob | None] | None = None
    repetition: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure of an evaluation, one JSON line on disk."""

    task: str
    metric: str
    value: float
    stderr: float | None = None
    n: int = 0
    shots: int = 0
    prompt_hash: str = ""
    low: float | None = None  # 95 % confidence interval
    high: float | None = None
    model: str = ""  # the checkpoint's name in the comparison; a baseline has its own
    left_out: tuple[int, ...] = ()  # questions (`item` in samples.jsonl) beyond the model's context, not among the n
    fewer_shots: tuple[int, ...] = ()  # questions asked with fewer examples, so that they fit
