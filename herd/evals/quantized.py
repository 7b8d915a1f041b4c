"""What quantizing changes: speed, bits per byte and predictions, the smaller copy beside the original."""

from __future__ import annotations

import gc
import time

import torch
from torch import nn

from herd.data.shards import Documents
from herd.evals.perplexity import code_length, sample_documents
from herd.formats.checkpoint import Checkpoint
from herd.infer.engine import Engine
from herd.kernels import decoding
from herd.log import say
from herd.model.llama import LlamaForCausalLM
from herd.ops.probe import available_memory
from herd.ops.quantized import Int4Linear, QuantizedLinear, dequantize_rows, quantize_rows
from herd.types import SamplingParams

_COMPARED_TOKENS = 1024  # of held-out text, for the divergence
_TIMED_ANSWERS, _TIMED_TOKENS = 5, 48
_WITH_WORK = 1.25  # memory of a model that answers, in sizes of its weights


def speeds(source: Checkpoint, target: Checkpoint) -> dict[str, float]:
    """Tokens a second of one answer at a time, prompt excluded; the best of a few. Of models that fit into memory:
    quantizing goes layer by layer, and so larger ones come here too."""
    figures = {}
    for when, checkpoint in (("before", source), ("after", target)):
        if _fits(checkpoint):
            figures[f"decode_tokens_per_second_{when}"] = _decode_speed(checkpoint)
        else:
            say(f"  the speed {when} is not measured: {checkpoint.place} does not fit into the memory that is free")
    return figures


def _fits(checkpoint: Checkpoint) -> bool:
    in_use = 1 if decoding.computes_bf16() else 2  # else float32
    return _WITH_WORK * in_use * _num_bytes(checkpoint) < available_memory(torch.device("cpu"))


def _decode_speed(checkpoint: Checkpoint) -> float:
    decoding.wait()
    engine = Engine(checkpoint, cache_bytes=2**26, max_sequences=1)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=_TIMED_TOKENS)
    speeds = []
    for seed in range(_TIMED_ANSWERS + 1):  # the first one warms up
        request = engine.request([engine.tokenizer.bos_id], params)
        engine.submit(request)
        engine.step()
        began = time.perf_counter()
        while not request.finished:
            engine.step()
        if seed and len(request.leader.tokens) > 1:
            speeds.append((len(request.leader.tokens) - 1) / (time.perf_counter() - began))
    del engine
    gc.collect()
    return round(max(speeds, default=0.0), 1)


# ---- quality ---------------------------------------------------------------------------------------------------------


def qualities(
    source: Checkpoint,
    target: Checkpoint,
    heldout: dict[str, Documents],
    *,
    max_bytes: int,
    context_tokens: int | None = None,
) -> dict[str, float]:
    """Bits per byte of both on the same held-out text, and how far their predictions are apart.

    `max_bytes` of each source are read; the context is the model's own by default, at most 1,024 tokens.
    """
    if not heldout:
        return {}
    before, rounded = source.load(), target.load()
    assert isinstance(before, LlamaForCausalLM) and isinstance(rounded, LlamaForCausalLM)
    after = _as_served(rounded)
    context = min(context_tokens or 1024, before.config.max_position_embeddings)
    return {
        "heldout_bits_per_byte_before": _bits_per_byte(before, heldout, max_bytes, context),
        "heldout_bits_per_byte_after": _bits_per_byte(after, heldout, max_bytes, context),
    } | _divergence(before, after, heldout, context)


def _as_served(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model with its head rounded as the engine does it when it opens int8 or int4 weights."""
    if any(isinstance(module, QuantizedLinear | Int4Linear) for module in model.modules()):
        weight = model.lm_head.weight
        model.lm_head.weight = nn.Parameter(dequantize_rows(*quantize_rows(weight), weight.dtype), requires_grad=False)
    return model


def _bits_per_byte(
    model: LlamaForCausalLM, heldout: dict[str, Documents], max_bytes: int, context_tokens: int
) -> float:
    tokens, num_bytes = [], []
    for documents in heldout.values():
        chosen = sample_documents(documents, max_bytes)
        tokens += [documents.tokens(index) for index in chosen]
        num_bytes += [int(documents.num_bytes[index]) for index in chosen]
    return round(code_length(model, tokens, num_bytes, context_tokens=context_tokens).bits_per_byte, 4)


@torch.inference_mode()
def _divergence(
    before: LlamaForCausalLM, after: LlamaForCausalLM, heldout: dict[str, Documents], context_tokens: int
) -> dict[str, float]:
    """Kullback-Leibler divergence a token (nats), and how often both find the same token likeliest."""
    divergence = agreeing = count = 0.0
    for documents in heldout.values():
        for index in sample_documents(documents, 4 * _COMPARED_TOKENS):
            row = torch.from_numpy(documents.tokens(index)[:context_tokens].astype("int64"))[None]
            p, q = (model(row).float().log_softmax(-1) for model in (before, after))
            divergence += float((p.exp() * (p - q)).sum())
            agreeing += float((p.argmax(-1) == q.argmax(-1)).sum())
            count += row.numel()
            if count >= _COMPARED_TOKENS:
                break
    return {"kl_nats_per_token": round(divergence / count, 6), "same_likeliest_token": round(agreeing / count, 4)}


def _num_bytes(checkpoint: Checkpoint) -> int:
    return sum(info.dtype.itemsize * torch.Size(info.shape).numel() for info in checkpoint.table.values())
