"""The shape of a Llama, under the names of Hugging Face's `config.json`; importable without PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from herd.errors import CheckpointError, ConfigError
from herd.model.foreign import check_computes_a_llama
from herd.model.scaling import LongScaling, Scaling, is_number, scaling_of, scaling_values
from herd.model.scaling import RopeScaling as RopeScaling

CAUSAL_LM = "LlamaForCausalLM"
SEQUENCE_CLASSIFICATION = "LlamaForSequenceClassification"
ARCHITECTURES = (CAUSAL_LM, SEQUENCE_CLASSIFICATION)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that shapes a Llama. Field names are those of `config.json`.

    Raises:
        ConfigError: a size is impossible alone or together with another.
    """

    vocab_size: int
    """Rows of the embedding, special tokens included."""
    hidden_size: int
    """Width D of the residual stream."""
    intermediate_size: int
    """Width F of the feed-forward layer."""
    num_hidden_layers: int
    """Number of transformer blocks."""
    num_attention_heads: int
    """Query heads H."""
    num_key_value_heads: int = cast(int, None)
    """Key-value heads K, a divisor of H; as many as query heads when absent."""
    head_dim: int = cast(int, None)
    """Channels C per head; hidden_size / num_attention_heads when absent."""
    max_position_embeddings: int = 8192
    """Context in tokens."""
    rms_norm_eps: float = 1e-5
    """Epsilon of RMSNorm."""
    rope_theta: float = 500_000.0
    """Base of the RoPE frequencies."""
    rope_scaling: Scaling | None = None
    """RoPE scaling for longer contexts, Llama 3.1's or another; none before 3.1."""
    tie_word_embeddings: bool = False
    """The output projection is the embedding itself."""
    attention_bias: bool = False
    """Whether the four projections of attention have a bias; no released Llama's do."""
    mlp_bias: bool = False
    """Whether the three projections of the feed-forward layer have a bias; no released Llama's do."""
    initializer_range: float = 0.02
    """Standard deviation of newly initialized weights."""
    bos_token_id: int | None = None
    """Id of the token that begins every text."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Ids that end an answer."""
    pad_token_id: int | None = None
    """Id of padding."""
    architecture: str = CAUSAL_LM
    """`LlamaForCausalLM`, or `LlamaForSequenceClassification` for a reward model."""
    num_labels: int = 1
    """Outputs of a sequence classifier."""
    quantization_config: dict[str, Any] | None = field(default=None, hash=False)
    """How the weights on disk are quantized: `quantization_config` of `config.json`."""
    as_read: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """The whole `config.json` that it was read from, for writing it unchanged; empty if read from another format."""
    generation: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """The generation_config.json beside it, for writing it unchanged."""

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None and self.num_attention_heads:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        if isinstance(self.rope_scaling, dict):
            object.__setattr__(self, "rope_scaling", scaling_of(self.rope_scaling, self.max_position_embeddings))
        faults = list(self._faults())
        if faults:
            raise ConfigError("The model's shape is impossible: " + "; ".join(faults) + ".")

    def _faults(self):
        sizes = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
        for name in f"{sizes} head_dim max_position_embeddings num_labels".split():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                yield f"{name} must be a whole number of at least 1, not {value!r}"
                return
            if value > (most := _LARGEST.get(name, 2**24)):
                yield f"{name} ({value}) is above {most}"
                return
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            yield f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})"
        if self.head_dim == self.hidden_size // heads and self.hidden_size % heads:
            yield f"hidden_size ({self.hidden_size}) is not divisible by num_attention_heads ({heads})"
        if self.head_dim % 2:
            yield f"head_dim ({self.head_dim}) must be even, because RoPE rotates pairs of channels"
        if not (is_number(self.rope_theta) and self.rope_theta > 1):
            yield f"rope_theta must be above 1, not {self.rope_theta!r}"
        if not (is_number(self.rms_norm_eps) and 0 < self.rms_norm_eps < 1):
            yield f"rms_norm_eps must be between 0 and 1, not {self.rms_norm_eps!r}"
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false, not {getattr(self, name)!r}"
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = value if name == "eos_token_id" and isinstance(value, tuple) else (value,)
            if not all(isinstance(i, int | None) for i in ids):
                yield f"{name} must be the id of a token, not {value!r}"
        if isinstance(self.rope_scaling, LongScaling):
            for name in ("short_factor", "long_factor"):
                if (count := len(getattr(self.rope_scaling, name))) != self.head_dim // 2:
                    yield f"rope_scaling has {count} divisors in {name}, a head has {self.head_dim // 2} frequencies"
        if not isinstance(self.quantization_config, dict | None):
            yield f"quantization_config must be an object, not {self.quantization_config!r}"
        if self.architecture not in ARCHITECTURES:
            yield f"architecture must be {' or '.join(ARCHITECTURES)}, not {self.architecture!r}"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer, always as a tuple."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read the content of a `config.json`, of transformers 4 or 5. Keys without influence on the model are ignored.

        Raises:
            ConfigError: it is not a Llama, or has a feature that is not supported (such as a sliding window).
        """
        _check_is_llama(values)
        known = {f.name for f in fields(cls)} - {"architecture", "rope_scaling", "num_labels", "as_read", "generation"}
        taken = {name: value for name, value in values.items() if name in known and value is not None}
        missing = [f for f in _REQUIRED if f not in taken]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}.")
        rope = (
            values.get("rope_scaling") or values.get("rope_parameters") or {}
        )  # `transformers` takes them in this order
        taken["rope_theta"] = rope.get("rope_theta") or taken.get("rope_theta", 10_000.0)
        taken.setdefault("rms_norm_eps", 1e-6)
        taken.setdefault("max_position_embeddings", 2048)
        scaling = scaling_of(rope, taken["max_position_embeddings"], values.get("original_max_position_embeddings"))
        architecture = (values.get("architectures") or [CAUSAL_LM])[0]
        labels = len(values["id2label"]) if values.get("id2label") else values.get("num_labels", 1)
        return cls(rope_scaling=scaling, architecture=architecture, num_labels=labels, **taken)

    @classmethod
    def from_folder(cls, folder: Path | str) -> ModelConfig:
        """Read `config.json` of a checkpoint folder.

        Raises:
            CheckpointError: the file is missing or is not JSON.
            ConfigError: it does not describe a Llama.
        """
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: {folder} is not a Hugging Face checkpoint folder.") from None
        except (ValueError, OSError, RecursionError) as fault:
            raise CheckpointError(f"{path} cannot be read as JSON: {fault}.") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}.")
        try:
            config = cls.from_dict(values)
        except ConfigError as fault:
            raise ConfigError(f"{path}: {fault}") from None
        return replace(config, as_read=values, generation=_read_generation(path.with_name(GENERATION)))

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`, for transformers 4 and 5, vLLM, SGLang and llama.cpp's converter.

        The file that it was read from is reproduced, except for values that have changed since.
        """
        values = self._values()
        if not self.as_read:
            return values
        before = ModelConfig.from_dict(self.as_read)._values()
        changed = {name: value for name, value in values.items() if name not in before or before[name] != value}
        gone = [name for name in before if name not in values]
        if {"rope_scaling", "rope_theta"} & {*changed, *gone}:  # where transformers 5 repeats them
            gone.append("rope_parameters")
            changed["rope_theta"] = values["rope_theta"]
        return {name: value for name, value in self.as_read.items() if name not in gone} | changed

    def generation_config(self) -> dict[str, Any] | None:
        """The content of generation_config.json: as it was read, with the current eos_token_id; None for no file.

        Herd's own models get Llama 3.1's sampling settings; models read from other formats without any, only ids.
        """
        ids = {name: getattr(self, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        ids = {name: list(found) if isinstance(found, tuple) else found for name, found in ids.items()}
        ids = {name: found for name, found in ids.items() if found is not None}
        if self.as_read is None:
            return {"do_sample": True, "temperature": 0.6, "top_p": 0.9} | ids
        ends = {"eos_token_id": ids.get("eos_token_id")}
        same = bool(self.as_read) and ModelConfig.from_dict(self.as_read).eos_token_id == self.eos_token_id
        if self.generation is not None:
            return self.generation if same else self.generation | ends
        return None if same else ids

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"architectures": [self.architecture], "model_type": "llama"}
        values |= {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _WRITTEN_APART}
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        values |= {"hidden_act": "silu", "attention_dropout": 0.0}
        if self.rope_scaling is not None:
            values["rope_scaling"] = scaling_values(self.rope_scaling)
        if self.architecture == SEQUENCE_CLASSIFICATION:
            values["id2label"] = {str(i): f"LABEL_{i}" for i in range(self.num_labels)}
            values["label2id"] = {f"LABEL_{i}": i for i in range(self.num_labels)}
        if self.quantization_config is not None:
            values["quantization_config"] = self.quantization_config
        return values


_MAX_LAYERS = 10_000  # the model is built before it is compared with the file's tensors
_LARGEST = {
    "num_hidden_layers": _MAX_LAYERS,
    "max_position_embeddings": 2**27,
}  # widths: 2^24
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_WRITTEN_APART = ("architecture", "num_labels", "quantization_config", "rope_scaling", "as_read", "generation")
GENERATION = "generation_config.json"


def _read_generation(file: Path) -> dict[str, Any] | None:
    """The content of a generation_config.json; None if it is missing or not a JSON object."""
    if not file.is_file():  # reading a pipe or a device might never end
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _check_kinds(values: dict[str, Any]) -> None:
    for name, kind, wanted in _NESTED:
        if values.get(name) and not isinstance(values[name], kind):
            raise ConfigError(f"{name} must be {wanted}, not {values[name]!r}.")


_NESTED = (
    ("architectures", list, "a list"),
    ("rope_parameters", dict, "an object"),
    ("rope_scaling", dict, "an object"),
    ("id2label", dict, "an object"),
)


def _check_is_llama(values: dict[str, Any]) -> None:
    _check_kinds(values)
    if values.get("model_type", "llama") != "llama":
        raise ConfigError(f"model_type is {values['model_type']!r}; only 'llama' is supported.")
    architecture = (values.get("architectures") or [CAUSAL_LM])[0]
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architectures names {architecture!r}; supported are {', '.join(ARCHITECTURES)}.")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"hidden_act is {values['hidden_act']!r}; a Llama has 'silu'.")
    check_computes_a_llama(values)


def num_parameters(config: ModelConfig) -> int:
    """The number of parameters, with a tied embedding counted once."""
    c = config
    channels = c.head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)
    block = c.hidden_size * channels + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
    if c.attention_bias:
        block += c.head_dim * (c.num_attention_heads + 2 * c.num_key_value_heads) + c.hidden_size
    if c.mlp_bias:
        block += 2 * c.intermediate_size + c.hidden_size
    embedding = c.vocab_size * c.hidden_size
    if c.architecture == SEQUENCE_CLASSIFICATION:
        head = c.num_labels * c.hidden_size
    else:
        head = 0 if c.tie_word_embeddings else embedding
    return c.num_hidden_layers * block + embedding + c.hidden_size + head
