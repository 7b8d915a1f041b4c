"""RoPE settings in GGUF: fields that llama.cpp reads, tensors of divisors, and Herd's own field for the rest.

    rope.scaling.type        linear if there is a factor and no type
    rope.scaling.factor      divides every frequency; `rope.scale_linear` in older files
    rope.scaling.attn_factor factor on cosines and sines
    rope_freqs.weight        a divisor for each frequency (Llama 3.1); rope_factors_short and _long: two sets (longrope)

Fields mean what llama.cpp takes them to mean. Unknown ones are refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from herd.errors import CheckpointError, ConfigError
from herd.formats.gguf import GGUFFile
from herd.log import say
from herd.model.config import ModelConfig
from herd.model.rope import inverse_frequencies
from herd.model.scaling import (
    DynamicScaling,
    LinearScaling,
    LongScaling,
    RopeScaling,
    Scaling,
    YarnScaling,
    is_number,
    magnitude,
    scaling_of,
    scaling_values,
    sharpness,
)

DIVISORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
TABLES = (DIVISORS, SHORT, LONG)
"""Tensors that are settings, not weights."""

_OWN = "herd.rope_scaling"
_PREFIX = "llama.rope."
_PASSED_OVER = {
    "scaling.yarn_ext_factor": 1, "scaling.yarn_attn_factor": 1, "scaling.yarn_beta_fast": 32,
    "scaling.yarn_beta_slow": 1, "scaling.yarn_log_multiplier": 0,
}  # fmt: skip
_KNOWN = {
    "freq_base", "dimension_count", "scale_linear", "scaling.type", "scaling.factor", "scaling.attn_factor",
    "scaling.original_context_length", "scaling.finetuned", *_PASSED_OVER,
}  # fmt: skip
_LONGEST = 2**30  # a text longer than any original context


# ---- read ------------------------------------------------------------------------------------------------------------


def with_scaling(file: GGUFFile, config: ModelConfig) -> ModelConfig:
    """The configuration with the RoPE scaling of a file's fields and divisors.

    Raises:
        ConfigError: a setting is unknown, or two contradict each other.
        CheckpointError: a tensor of divisors has the wrong shape.
    """
    scaled = replace(config, rope_scaling=_simplest(file, config))
    own = _own_scaling(file.fields, scaled)
    return own if own is not None and _is_equivalent(own, scaled) else scaled


def _simplest(file: GGUFFile, config: ModelConfig) -> Scaling | None:
    settings = _settings(file)
    kind, factor = settings.get("scaling.type") or "linear", _number(file, "scaling.factor", "scale_linear") or 1.0
    attention = _number(file, "scaling.attn_factor") or 1.0
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ConfigError(
            f"{file.path}: RoPE scaling of the type {kind!r}; supported are linear, yarn, longrope and none."
        )
    if kind == "yarn":
        return _yarn(file, config, factor, attention)
    factor = 1.0 if kind == "none" else factor
    original = int(_number(file, "scaling.original_context_length") or config.max_position_embeddings)
    if kind == "longrope":
        short, long = (_table(file, name, config) * factor for name in (SHORT, LONG))
        return _long(short, long, original, attention)
    divisors = _table(file, DIVISORS, config)
    if bool((divisors == 1).all()) and attention == 1:
        return LinearScaling(factor=factor) if factor != 1 else None
    if factor == attention == 1 and (usual := _llama3(divisors, config)):
        return usual
    return _long(divisors * factor, divisors * factor, original, attention)


def _settings(file: GGUFFile) -> dict[str, Any]:
    settings = {key.removeprefix(_PREFIX): value for key, value in file.fields.items() if key.startswith(_PREFIX)}
    if unknown := sorted(settings.keys() - _KNOWN):
        raise ConfigError(f"{file.path}: the field {_PREFIX}{unknown[0]} changes RoPE in an unknown way.")
    return settings


def _number(file: GGUFFile, *names: str) -> float | None:
    for name in names:
        if (value := file.fields.get(_PREFIX + name)) is not None:
            if not is_number(value) or value < 0:
                raise ConfigError(f"{file.path}: the field {_PREFIX}{name} is {value!r}, expected a positive number.")
            return value
    return None


def _yarn(file: GGUFFile, config: ModelConfig, factor: float, attention: float) -> Scaling:
    """For every Llama, llama.cpp uses beta 32 and 1, and a magnitude of 0.1 ln(factor) + 1 times attn_factor."""
    if DIVISORS in file.tensors:
        raise ConfigError(f"{file.path}: has both YaRN and {DIVISORS}, which exclude each other.")
    for name, usual in _PASSED_OVER.items():
        if (value := _number(file, name)) not in (None, usual):
            say(f"  {file.path}: {_PREFIX}{name} {value:g} is ignored, as by llama.cpp for a Llama")
    original = int(_number(file, "scaling.original_context_length") or config.max_position_embeddings)
    scale = None if attention == 1 else sharpness(factor) * attention
    return YarnScaling(factor=factor, original_max_position_embeddings=original, attention_factor=scale)


def _long(short: Tensor, long: Tensor, original: int, attention: float) -> LongScaling:
    return LongScaling(
        short_factor=tuple(short.tolist()),
        long_factor=tuple(long.tolist()),
        original_max_position_embeddings=original,
        attention_factor=attention,
    )


def _llama3(divisors: Tensor, config: ModelConfig) -> RopeScaling | None:
    """Llama 3.1's scaling, if it has these divisors."""
    usual = RopeScaling(factor=max(1.0, round(float(divisors.max()), 4)))
    return usual if torch.allclose(_divisors(replace(config, rope_scaling=usual)), divisors, rtol=1e-4) else None


def _table(file: GGUFFile, name: str, config: ModelConfig) -> Tensor:
    """The divisors in a tensor, (C/2,) float32; ones if it is missing."""
    if name not in file.tensors:
        return torch.ones(config.head_dim // 2)
    table = file.tensors[name]
    if table.type != "F32" or table.shape != (config.head_dim // 2,):
        raise CheckpointError(
            f"{table.file}: tensor {name} is {table.type} {list(table.shape)}, expected F32 {[config.head_dim // 2]}."
        )
    with open(table.file, "rb") as stream:
        stream.seek(table.offset)
        return torch.frombuffer(bytearray(stream.read(table.num_bytes)), dtype=torch.float32)


def _own_scaling(fields: dict[str, Any], config: ModelConfig) -> ModelConfig | None:
    """The configuration by Herd's own field, for settings that GGUF cannot express."""
    try:
        values = json.loads(fields[_OWN])
        kind = {} if "rope_type" in values else {"rope_type": "llama3"}
        return replace(config, rope_scaling=scaling_of(values | kind, config.max_position_embeddings))
    except (KeyError, ValueError, TypeError, RecursionError, AttributeError, ConfigError):
        return None


def _is_equivalent(own: ModelConfig, other: ModelConfig) -> bool:
    """Whether two settings give the same RoPE, for texts within the file's context and for longer ones."""
    is_dynamic = isinstance(own.rope_scaling, DynamicScaling)
    for length in (1,) if is_dynamic else (1, _LONGEST):
        first, second = inverse_frequencies(own, length=length), inverse_frequencies(other, length=length)
        if not torch.allclose(first, second, rtol=1e-4, atol=0):
            return False
    return abs(_magnitude(own) - _magnitude(other)) < 1e-4


def _magnitude(config: ModelConfig) -> float:
    return magnitude(config.rope_scaling, config.max_position_embeddings)


# ---- write -----------------------------------------------------------------------------------------------------------


def scaling_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields for a configuration's RoPE scaling."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    fields: dict[str, Any] = {_OWN: json.dumps(scaling_values(scaling))}
    if isinstance(scaling, LinearScaling):
        fields |= {"scaling.type": "linear", "scaling.factor": float(scaling.factor)}
    elif isinstance(scaling, YarnScaling | LongScaling):
        fields |= {"scaling.type": "longrope", "scaling.attn_factor": float(_magnitude(config))}
        fields["scaling.original_context_length"] = scaling.original_max_position_embeddings
        if isinstance(scaling, YarnScaling):
            fields |= _yarn_fields(scaling, _magnitude(config))
    return {key if key == _OWN else _PREFIX + key: value for key, value in fields.items()}


def _yarn_fields(scaling: YarnScaling, scale: float) -> dict[str, Any]:
    """The fields for YaRN; with parameters other than llama.cpp's, the frequencies are written as divisors instead."""
    if not _is_usual(scaling):
        return {"scaling.type": "none", "scaling.attn_factor": float(scale)}
    attention = float(scale / sharpness(scaling.factor))
    return {"scaling.type": "yarn", "scaling.factor": float(scaling.factor), "scaling.attn_factor": attention}


def _is_usual(scaling: YarnScaling) -> bool:
    return scaling.truncate and (scaling.beta_fast, scaling.beta_slow) == (32, 1)


def scaling_tables(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of divisors for a configuration's RoPE scaling, each (C/2,) float32."""
    scaling = config.rope_scaling
    if isinstance(scaling, LongScaling):
        return {SHORT: torch.tensor(scaling.short_factor), LONG: torch.tensor(scaling.long_factor)}
    if isinstance(scaling, RopeScaling) or (isinstance(scaling, YarnScaling) and not _is_usual(scaling)):
        return {DIVISORS: _divisors(config)}
    return {}


def _divisors(config: ModelConfig) -> Tensor:
    """The divisor of each RoPE frequency: (C/2,) float32."""
    return inverse_frequencies(replace(config, rope_scaling=None)) / inverse_frequencies(config)
