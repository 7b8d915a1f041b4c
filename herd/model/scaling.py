"""RoPE scaling for longer contexts, with the names of `config.json`; does not import PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from herd.errors import ConfigError


def is_number(value: Any) -> bool:
    """Whether a value from a file is a finite number, not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's scaling of the low RoPE frequencies.

    Source: Meta's llama-models, `apply_scaling`; the paper does not describe it.
    """

    kind: ClassVar[str] = "llama3"
    factor: float = 8.0
    """Divisor of the lowest frequencies."""
    low_freq_factor: float = 1.0
    """Frequencies with a wavelength above original context / this are divided by `factor`."""
    high_freq_factor: float = 4.0
    """Those with a wavelength below original context / this are unchanged."""
    original_max_position_embeddings: int = 8192
    """Context in tokens before the scaling."""

    def __post_init__(self) -> None:
        _check(self)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope_scaling: low_freq_factor ({self.low_freq_factor}) must be positive and below "
                f"high_freq_factor ({self.high_freq_factor})"
            )


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """All frequencies are divided by the factor (position interpolation)."""

    kind: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """Dynamic NTK: theta grows with the length of a text beyond `max_position_embeddings`."""

    kind: ClassVar[str] = "dynamic"
    factor: float

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Low frequencies are divided by the factor, high ones kept, those between blended; attention is sharpened.

    Source: YaRN (arXiv 2309.00071).
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    """Factor on cosines and sines; 0.1 ln(factor) + 1 when absent."""
    beta_fast: float = 32.0
    """Frequencies with more rotations than this in the original context are kept."""
    beta_slow: float = 1.0
    """Those with fewer rotations than this are divided by the factor."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """With both, attention_factor is the quotient of 0.1 m ln(factor) + 1 for the two (DeepSeek)."""
    truncate: bool = True
    """Round the borders of the blend to whole channels."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class LongScaling:
    """Two sets of divisors, one per frequency: for texts within the original context, and for longer ones.

    Source: LongRoPE (arXiv 2402.13753).
    """

    kind: ClassVar[str] = "longrope"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float | None = None
    """Longest context / original context, which determines attention_factor; the configuration's when absent."""
    attention_factor: float | None = None
    """Factor on cosines and sines; sqrt(1 + ln(factor) / ln(original context)) when absent."""

    def __post_init__(self) -> None:
        _check(self)
        for name in ("short_factor", "long_factor"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(is_number(value) and value > 0 for value in values):
                raise ConfigError(f"rope_scaling: {name} must be a list of positive numbers")
            object.__setattr__(self, name, tuple(float(value) for value in values))


Scaling = RopeScaling | LinearScaling | DynamicScaling | YarnScaling | LongScaling
_KINDS: dict[str, type[Scaling]] = {
    "llama3": RopeScaling,
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "yarn": YarnScaling,
    "longrope": LongScaling,
    "su": LongScaling,  # its name in older files
}
_NO_SCALING = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")
_AT_LEAST_1 = ("factor", "original_max_position_embeddings")
_LISTS = ("short_factor", "long_factor")
_REQUIRED = ("factor", "low_freq_factor", "high_freq_factor", *_LISTS)  # of the fields that a kind has


def _check(scaling: Scaling) -> None:
    for name in (f.name for f in fields(scaling)):
        value = getattr(scaling, name)
        if name in _LISTS or value is None:
            continue
        if name == "truncate":
            if not isinstance(value, bool):
                raise ConfigError(f"rope_scaling: truncate must be true or false, not {value!r}")
        elif not is_number(value):
            raise ConfigError(f"rope_scaling: {name} must be a number, not {value!r}")
        elif value <= 0 or (name in _AT_LEAST_1 and value < 1):
            least = "at least 1" if name in _AT_LEAST_1 else "positive"
            raise ConfigError(f"rope_scaling: {name} must be {least}, not {value!r}")


def scaling_of(values: dict[str, Any], max_positions: int, original: Any = None) -> Scaling | None:
    """The scaling that `rope_scaling` or `rope_parameters` describes; None if it changes nothing.

    `max_positions` is the configuration's context; `original` the original one, if given outside of the scaling.

    Raises:
        ConfigError: its type or one of its settings is unknown.
    """
    kind = values.get("rope_type") or values.get("type") or "default"
    given = {name: value for name, value in values.items() if name not in _NO_SCALING and value is not None}
    if kind == "default":
        if given and given != {"factor": 1}:
            raise ConfigError(
                f"rope_scaling sets {', '.join(sorted(given))} but no type; add rope_type, one of {', '.join(_KINDS)}."
            )
        return None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"rope_scaling has the type {kind!r}; supported are {', '.join(_KINDS)}, or none.")
    scaling, names = _KINDS[kind], {f.name for f in fields(_KINDS[kind])}
    context = original or given.pop("original_max_position_embeddings", None) or max_positions
    if "original_max_position_embeddings" in names:  # the others ignore it, as `transformers` does
        given["original_max_position_embeddings"] = context
    if scaling is YarnScaling and is_number(context) and context > 0:
        given.setdefault("factor", max_positions / context)
    if unknown := sorted(given.keys() - names):
        raise ConfigError(f"rope_scaling of the type {kind!r} sets {', '.join(unknown)}, which is not known here.")
    required = {name for name in _REQUIRED if name in names and not (name == "factor" and scaling is LongScaling)}
    if missing := sorted(required - given.keys()):
        raise ConfigError(f"rope_scaling lacks {', '.join(missing)}.")
    return scaling(**given)


def scaling_values(scaling: Scaling) -> dict[str, Any]:
    """The content of `rope_scaling` in `config.json`."""
    values = {f.name: getattr(scaling, f.name) for f in fields(scaling)}
    return {"rope_type": scaling.kind} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value is not None
    }


def magnitude(scaling: Scaling | None, max_positions: int) -> float:
    """The factor on cosines and sines: 1, except for YaRN and LongRoPE."""
    if not isinstance(scaling, YarnScaling | LongScaling):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    original = scaling.original_max_position_embeddings
    if isinstance(scaling, LongScaling):
        factor = scaling.factor or max_positions / original
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    if scaling.mscale and scaling.mscale_all_dim:
        return sharpness(scaling.factor, scaling.mscale) / sharpness(scaling.factor, scaling.mscale_all_dim)
    return sharpness(scaling.factor)


def sharpness(factor: float, weight: float = 1.0) -> float:
    """YaRN's magnitude for a context longer by `factor`."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
