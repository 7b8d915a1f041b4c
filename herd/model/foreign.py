"""Features of other model families in a `config.json`, which are refused by name instead of being ignored."""

from __future__ import annotations

import math
from typing import Any

from herd.errors import ConfigError

_OFF = (None, False, 0)
_ONE = (None, 1)
_FOREIGN: dict[str, tuple[tuple[Any, ...], str]] = {
    "partial_rotary_factor": (_ONE, "a Llama rotates whole heads"),
    "rotary_pct": (_ONE, "a Llama rotates whole heads"),
    "attention_chunk_size": (_OFF, "attention in chunks (Llama 4)"),
    "no_rope_layer_interval": (_OFF, "layers without positions (Llama 4, SmolLM3)"),
    "attn_temperature_tuning": (_OFF, "attention with temperature by position (Llama 4)"),
    "use_qk_norm": (_OFF, "norms of queries and keys (Llama 4, Qwen 3)"),
    "qk_norm": (_OFF, "norms of queries and keys (Llama 4, Qwen 3)"),
    "qk_layernorm": (_OFF, "norms of queries and keys"),
    "clip_qkv": (_OFF, "clipped queries, keys and values (OLMo)"),
    "attn_logit_softcapping": (_OFF, "soft-capped attention logits (Gemma 2)"),
    "final_logit_softcapping": (_OFF, "soft-capped logits (Gemma 2)"),
    "logit_scale": (_ONE, "scaled logits (Cohere)"),
    "logits_scaling": (_ONE, "scaled logits (Granite)"),
    "embedding_multiplier": (_ONE, "a scaled embedding (Granite)"),
    "residual_multiplier": (_ONE, "scaled residuals (Granite)"),
    "lm_head_multiplier": (_ONE, "scaled logits (Falcon H1)"),
    "scale_emb": (_ONE, "a scaled embedding (MiniCPM)"),
    "use_parallel_residual": (_OFF, "attention in parallel to the feed-forward layer (GPT-NeoX)"),
    "parallel_attn": (_OFF, "attention in parallel to the feed-forward layer (Falcon)"),
    "alibi": (_OFF, "ALiBi positions"),
    "rope_interleaved": (_OFF, "RoPE on adjacent channels"),
    "rope_interleave": (_OFF, "RoPE on adjacent channels"),
    "num_local_experts": ((None, 0, 1), "a mixture of experts (Mixtral)"),
    "num_experts": ((None, 0, 1), "a mixture of experts"),
    "n_routed_experts": (_OFF, "a mixture of experts (DeepSeek)"),
    "is_decoder_only": ((None, True), "an encoder"),
    "add_cross_attention": (_OFF, "cross-attention"),
    "layer_norm_eps": (_OFF, "LayerNorm"),
}
"""For each key, the values that mean "off", and the feature that other values ask for."""


def check_computes_a_llama(values: dict[str, Any]) -> None:
    """Refuse a `config.json` with a feature that a Llama does not have.

    Raises:
        ConfigError: it has one; the message names the key.
    """
    places = [values, *(values.get(name) or {} for name in ("rope_scaling", "rope_parameters"))]
    for key, (neutral, what) in _FOREIGN.items():
        for value in (place.get(key) for place in places):
            if value not in neutral:
                raise ConfigError(f"{key} is {value!r}, not {neutral[-1]!r}: {what}, which is not supported.")
    _check_window(values)
    kinds = values.get("layer_types") or []
    if strange := sorted({str(kind) for kind in kinds} - {"full_attention"}):
        raise ConfigError(f"layer_types names {', '.join(strange)}; every layer of a Llama attends to the whole text.")
    if 0 in (values.get("no_rope_layers") or []):  # a 0 marks a layer without
        raise ConfigError("no_rope_layers: some layers have no RoPE, but all layers of a Llama do.")
    if values.get("position_embedding_type") not in (None, "rope", "rotary"):
        raise ConfigError(f"position_embedding_type is {values['position_embedding_type']!r}; a Llama has RoPE.")
    _check_multiplier(values)


def _check_window(values: dict[str, Any]) -> None:
    window, context = values.get("sliding_window"), values.get("max_position_embeddings") or 2048
    if window in _OFF or values.get("use_sliding_window") is False:
        return
    if not isinstance(window, int) or window < context:
        raise ConfigError(
            f"sliding_window is {window!r}, below the context of {context} tokens (Mistral): every layer of a Llama "
            "attends to the whole text. Set it to null and max_position_embeddings to the window for short texts."
        )


def _check_multiplier(values: dict[str, Any]) -> None:
    """Check the scale of attention scores: a Llama's is 1 / sqrt(head_dim)."""
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    channels = values.get("head_dim") or (width // heads if isinstance(heads, int) and heads and width else None)
    scales = {"attention_multiplier": values.get("attention_multiplier")}
    if (scalar := values.get("query_pre_attn_scalar")) is not None:
        scales["query_pre_attn_scalar"] = scalar**-0.5 if isinstance(scalar, int | float) and scalar > 0 else scalar
    for key, value in scales.items():
        usual = channels**-0.5 if isinstance(channels, int) and channels > 0 else None
        if value is not None and (
            usual is None or not isinstance(value, int | float) or not math.isclose(value, usual, rel_tol=1e-4)
        ):
            raise ConfigError(f"{key} is {values[key]!r}; a Llama divides attention scores by sqrt(head_dim).")
