"""All layers of a step in one call of our CPU kernels, where the processor and the model allow it.

In PyTorch a decoded token takes some three hundred small operations, each with its own call and its own barrier
between threads. The reference is the model itself (`herd/model/llama.py`) with `paged_attention`.
"""

from __future__ import annotations

import ctypes
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from herd.infer.adapters import AdaptedLinear
from herd.infer.cache import PagedCache
from herd.kernels import decoding
from herd.model.llama import Block, LlamaForCausalLM
from herd.model.rope import rotary_table
from herd.ops.blocks import BlockLinear
from herd.ops.paged_attention import kernels_fit, scale_pointers
from herd.ops.quantized import DecodingLinear, Int4Linear, QuantizedLinear


class _Step(ctypes.Structure):
    """`Step` of decoding.cpp."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "num_layers", "layers", "M", "D", "F", "H", "K", "C", "x", "cos", "sin", "slots", "num_spans", "spans"
        )
    ]  # fmt: skip


class CompiledLayers:
    """The layers of one model over one cache, as the kernels' structs of pointers; keeps the weights alive."""

    def __init__(self, model: LlamaForCausalLM, cache: PagedCache) -> None:
        self._model, self._config = model.model, model.model.config
        blocks = model.model.blocks
        self._tensors = [tensor for block in blocks for linear in _linears(block) for tensor in _weights(linear)]
        rows = [_describe(block, layer) for block, layer in zip(blocks, cache.layers, strict=True)]
        self._layers = np.array(rows, dtype=np.int64)

    @classmethod
    def of(cls, model: LlamaForCausalLM, cache: PagedCache) -> CompiledLayers | None:
        """None where the kernels do not support the model's shapes or dtypes."""
        config = model.config
        fits = (
            model.model.norm.weight.dtype == torch.bfloat16
            and kernels_fit(cache.layers[0])
            and config.hidden_size % 64 == 0
            and config.intermediate_size % 32 == 0
            and config.num_attention_heads * config.head_dim % 64 == 0
            and all(_serves(linear) for block in model.model.blocks for linear in _linears(block))
        )
        return cls(model, cache) if fits else None

    def run(self, tokens: list[int], positions: list[int], slots: np.ndarray, spans: np.ndarray) -> Tensor:
        """Hidden states after the last norm: T tokens -> (T, D).

        `slots` (T,) int64 is where keys and values are written; `spans` (N, 4) describes the sequences as `spans_of`.
        """
        config = self._config
        x = self._model.embed(torch.tensor(tokens)).contiguous()
        cos, sin = (
            table.flatten(0, -2).contiguous() for table in rotary_table(config, torch.tensor([positions]), x.dtype)
        )
        step = _Step(
            num_layers=len(self._layers), layers=self._layers.ctypes.data, M=len(tokens), D=config.hidden_size,
            F=config.intermediate_size, H=config.num_attention_heads, K=config.num_key_value_heads, C=config.head_dim,
            x=x.data_ptr(), cos=cos.data_ptr(), sin=sin.data_ptr(), slots=slots.ctypes.data, num_spans=len(spans),
            spans=spans.ctypes.data,
        )  # fmt: skip
        kernels = decoding.kernels()
        assert kernels is not None  # `of` has checked
        kernels.run_layers(ctypes.byref(step), config.rms_norm_eps, torch.get_num_threads())
        return self._model.norm(x)


def _linears(block: Block) -> list[nn.Module]:
    """The linear layers of a block in the kernels' order, without adapters."""
    attention, mlp = block.self_attn, block.mlp
    linears = [
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    ]
    return [linear.base if isinstance(linear, AdaptedLinear) else linear for linear in linears]


def _serves(linear: nn.Module) -> bool:
    if type(linear) is DecodingLinear:
        return linear.weight.dtype == torch.bfloat16 and linear.in_features % 64 == 0 and linear.weight.is_contiguous()
    if type(linear) is QuantizedLinear:
        return linear.in_features % 64 == 0
    return type(linear) in (Int4Linear, BlockLinear)


def _weights(linear: nn.Module) -> tuple[Tensor, ...]:
    if isinstance(linear, BlockLinear):
        return tuple(part for part in linear.blocks if part is not None)
    names = ("weight",) if isinstance(linear, DecodingLinear) else ("weight", "weight_scale")
    return tuple(cast("Tensor", getattr(linear, name)) for name in names)


def _describe(block: Block, layer) -> list[int]:
    norms = [block.input_layernorm.weight.data_ptr(), block.post_attention_layernorm.weight.data_ptr()]
    cache = [layer.keys.data_ptr(), layer.values.data_ptr(), *scale_pointers(layer)]
    return [number for linear in _linears(block) for number in decoding.describe(*_weights(linear))] + norms + cache
