"""An encoder: a BERT-family model that embeds texts as vectors, and classifiers on top of them.

Attention is bidirectional, unlike the Llama's. Modules have Hugging Face's names; `herd/formats/encoder.py` opens a
folder of MiniLM, BERT or RoBERTa.

    encoder = open_encoder("../base-model/all-MiniLM-L6-v2")
    vectors = encoder.embed(["a cat", "a kitten"])               # (2, D), of length 1
    classifier = train_head(encoder, texts, labels)
    classifier.probabilities(["another text"])                   # (1, classes)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from herd.errors import CheckpointError, DataError
from herd.log import progress, say
from herd.ops.quantized import QuantizedLinear

Pooling = Literal["mean", "cls", "max"]
"""The mean or maximum of all tokens' hidden states, or the first token's."""

_MODEL_TYPES = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}  # 1: positions begin after padding's
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of an encoder, under the names of its `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    first_position: int = 0  # RoBERTa's begin after padding's

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> EncoderConfig:
        """Read a `config.json`.

        Raises:
            CheckpointError: it is another kind of model, or has a feature that is not supported.
        """
        kind = raw.get("model_type")
        if kind not in _MODEL_TYPES:
            known = ", ".join(_MODEL_TYPES)
            raise CheckpointError(f"{where}: model_type is {kind!r}; supported are {known}")
        if (act := raw.get("hidden_act", "gelu")) not in _ACTIVATIONS:
            raise CheckpointError(
                f"{where}: hidden_act {act!r} is not supported; supported are {', '.join(_ACTIVATIONS)}"
            )
        for key, usual in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if raw.get(key, usual) != usual:
                raise CheckpointError(f"{where}: {key}={raw[key]!r} is not supported; expected {usual!r}")
        if missing := [name for name in _NEEDED if not isinstance(raw.get(name), int)]:
            raise CheckpointError(f"{where}: {', '.join(missing)} missing or not a whole number")
        first = raw.get("pad_token_id", 1) + 1 if _MODEL_TYPES[kind] else 0
        optional = {name: raw[name] for name in ("type_vocab_size", "hidden_act", "layer_norm_eps") if name in raw}
        config = cls(**{name: raw[name] for name in _NEEDED}, **optional, first_position=first)
        if config.hidden_size % config.num_attention_heads:
            raise CheckpointError(f"{where}: hidden_size is no multiple of num_attention_heads")
        return config


_NEEDED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
)


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.first_position = config.first_position
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.first_position + torch.arange(tokens.shape[1], device=tokens.device)
        x = self.word_embeddings(tokens) + self.token_type_embeddings.weight[0] + self.position_embeddings(places)
        return self.LayerNorm(x)


class _SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        seen = mask[:, None, None, :]  # (B, 1, 1, T): every token attends to all tokens that are not padding
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(-2)


class _Output(nn.Module):
    """A projection, residual connection and LayerNorm."""

    def __init__(self, config: EncoderConfig, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class _Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.hidden_act]
        attention = {"self": _SelfAttention(config), "output": _Output(config, config.hidden_size)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = _Output(config, config.intermediate_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(self.activation(self.intermediate["dense"](x)), x)


class BertModel(nn.Module):
    """Embeddings and layers of BERT, without dropout, since usually only a head is trained."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Hidden states of texts: tokens (B, T), mask (B, T) false for padding -> (B, T, D)."""
        x = self.embeddings(tokens)
        for layer in cast(nn.ModuleList, self.encoder.layer):
            x = layer(x, mask)
        return x


class Encoder:
    """An encoder with its vocabulary: texts in, vectors out."""

    def __init__(
        self,
        model: BertModel,
        tokenizer: Tokenizer,
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        max_tokens: int | None = None,
    ) -> None:
        room = model.config.max_position_embeddings - model.config.first_position
        self.model, self.tokenizer = model.eval(), tokenizer
        self.pooling, self.normalize, self.max_tokens = pooling, normalize, min(max_tokens or room, room)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)

    @property
    def size(self) -> int:
        """Dimension D of a vector."""
        return self.model.config.hidden_size

    @property
    def fingerprint(self) -> str:
        """A hash of weights and pooling, by which a classifier is matched to its encoder."""
        digest = hashlib.sha256(f"{self.pooling} {self.normalize} {self.max_tokens}".encode())
        for weight in self.model.state_dict().values():
            digest.update(weight.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, batch_tokens: int = 8192, label: str | None = None) -> Tensor:
        """One vector per text, in order: (N, D) float32 on the CPU, of length 1 if `normalize`.

        Texts are truncated to `max_tokens`; a message says how many were. `label` shows progress.
        """
        encoded = self.tokenizer.encode_batch_fast(list(texts))
        if cut := sum(bool(entry.overflowing) for entry in encoded):
            say(f"  {cut:,} of {len(encoded):,} texts are truncated to their first {self.max_tokens} tokens")
        return self.embed_tokens([entry.ids for entry in encoded], batch_tokens=batch_tokens, label=label)

    @torch.no_grad()
    def embed_tokens(
        self, rows: Sequence[Sequence[int]], *, batch_tokens: int = 8192, label: str | None = None
    ) -> Tensor:
        """As `embed`, from token ids with special tokens, in rows of at most the model's context."""
        vectors = torch.empty(len(rows), self.size)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        with progress(label, total=len(rows), unit="texts") if label else nullcontext() as bar:
            while order:
                batch = order[-max(1, batch_tokens // len(rows[order[-1]])) :]  # the longest first
                del order[-len(batch) :]
                vectors[batch] = self.vectors([rows[index] for index in batch]).cpu()
                if bar is not None:
                    bar.advance(len(batch))
        return vectors

    def vectors(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """One batch of token ids to (N, D) float32 on the model's device, with gradients if weights require them."""
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
        tokens = torch.zeros(mask.shape, dtype=torch.int64)
        tokens[mask] = torch.tensor([token for row in rows for token in row])
        device = self.model.embeddings.word_embeddings.weight.device
        hidden = self.model(tokens.to(device), mask.to(device)).float()
        pooled = _pooled(hidden, mask.to(device), self.pooling)
        return F.normalize(pooled, dim=1) if self.normalize else pooled


def round_to_int8(encoder: Encoder) -> None:
    """Round the weights of an encoder's layers to int8, where they stand; its fingerprint becomes another."""
    for owner in list(encoder.model.encoder.modules()):
        for name, layer in list(owner.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(owner, name, _Rounded(layer))


class _Rounded(nn.Module):
    """A linear layer of int8 weights that keeps its bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.product, self.bias = QuantizedLinear.from_linear(linear), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x) + self.bias


def _pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


# ---- classifiers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextClassifier:
    """A linear softmax classifier on an encoder's vectors."""

    encoder: Encoder
    labels: list[str]
    weight: Tensor  # (classes, D)
    bias: Tensor  # (classes,)

    def probabilities(self, texts: Sequence[str]) -> Tensor:
        """(N, classes) float32, each row summing to 1."""
        return self.of_vectors(self.encoder.embed(texts))

    def of_vectors(self, vectors: Tensor) -> Tensor:
        """As `probabilities`, from vectors: (N, D) -> (N, classes)."""
        return (vectors @ self.weight.T + self.bias).softmax(1)


def train_head(
    encoder: Encoder,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    vectors: Tensor | None = None,
    decay: float = 1e-4,
    balanced: bool = False,
    max_steps: int = 200,
) -> TextClassifier:
    """Logistic regression on a frozen encoder's vectors; deterministic.

    `decay` is the factor of the L2 penalty in the loss; `balanced` gives every class the same weight, however many rows
    it has; `vectors` (N, D) are the texts' vectors, if already computed.

    Raises:
        DataError: no rows, the numbers of texts and labels differ, or there is only one class.
    """
    names = sorted(set(labels))
    if len(texts) != len(labels) or len(names) < 2:
        raise DataError(
            f"{len(texts):,} texts and {len(labels):,} labels of {len(names)} classes; expected a label for every text "
            "and two classes or more"
        )
    vectors = encoder.embed(texts, label="embed") if vectors is None else vectors
    targets = torch.tensor([names.index(label) for label in labels])
    counts = torch.bincount(targets, minlength=len(names))
    share = len(labels) / (len(names) * counts) if balanced else None
    weight = torch.zeros(len(names), encoder.size, requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=max_steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(vectors @ weight.T + bias, targets, share) + decay * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return TextClassifier(encoder, names, weight.detach(), bias.detach())
