"""How rotary frequencies are changed for longer contexts, under the names of `config.json`; needs no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from herd.errors import ConfigError


def is_number(value: Any) -> bool:
    """Whether a value from a file is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's change of the slow rotary frequencies.

    Source: Meta's llama-models, `apply_scaling`; the paper does not describe it.
    """

    kind: ClassVar[str] = "llama3"
    factor: float = 8.0
    """How many times slower the slowest frequencies turn."""
    low_freq_factor: float = 1.0
    """Wavelengths above original context / this are slowed in full."""
    high_freq_factor: float = 4.0
    """Wavelengths below original context / this stay as they are."""
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
    """Every frequency is slowed alike, as if positions lay closer together."""

    kind: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """A text longer than `max_position_embeddings` gets a larger theta, the larger the longer it is ("dynamic NTK")."""

    kind: ClassVar[str] = "dynamic"
    factor: float

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Slow frequencies are divided by the factor, quick ones kept, those between blended; attention is sharpened.

    Source: YaRN (arXiv 2309.00071).
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    """What cosines and sines are multiplied with; 0.1 ln(factor) + 1 when absent."""
    beta_fast: float = 32.0
    """Frequencies that turn more often than this in the original context are kept."""
    beta_slow: float = 1.0
    """Those that turn less often are divided by the factor."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    """Both: attention_factor is the quotient of 0.1 m ln(factor) + 1 for the two (DeepSeek)."""
    truncate: bool = True
    """The borders of the blend are whole channels."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class LongScaling:
    """A divisor for each frequency, of two sets: for texts within the original context, and for longer ones.

    Source: LongRoPE (arXiv 2402.13753).
    """

    kind: ClassVar[str] = "longrope"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float | None = None
    """Longest context / original context, from which attention_factor follows; the configuration's when absent."""
    attention_factor: float | None = None
    """What cosines and sines are multiplied with; sqrt(1 + ln(factor) / ln(original context)) when absent."""

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
_REQUIRED = ("factor", "low_freq_factor", "high_freq_factor", *_LISTS)  # of those that a kind has at all


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
    """The scaling that `rope_scaling` or `rope_parameters` describes, None where it changes nothing.

    `max_positions` is the configuration's context, `original` the original one where it stands beside the scaling.

    Raises:
        ConfigError: its type, or a setting of it, is not known: nothing is passed over.
    """
    kind = values.get("rope_type") or values.get("type") or "default"
    given = {name: value for name, value in values.items() if name not in _NO_SCALING and value is not None}
    if kind == "default":
        if given and given != {"factor": 1}:
            raise ConfigError(
                f"rope_scaling sets {', '.join(sorted(given))} and no type; say rope_type, one of {', '.join(_KINDS)}."
            )
        return None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"rope_scaling has the type {kind!r}; supported are {', '.join(_KINDS)}, or none.")
    scaling, names = _KINDS[kind], {f.name for f in fields(_KINDS[kind])}
    context = original or given.pop("original_max_position_embeddings", None) or max_positions
    if "original_max_position_embeddings" in names:  # the other kinds have none, nor use it in `transformers`
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
    """What `rope_scaling` holds in `config.json`."""
    values = {f.name: getattr(scaling, f.name) for f in fields(scaling)}
    return {"rope_type": scaling.kind} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value is not None
    }


def magnitude(scaling: Scaling | None, max_positions: int) -> float:
    """What cosines and sines are multiplied with: 1, but for YaRN and LongRoPE."""
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
    """YaRN's magnitude for a context so many times longer."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
