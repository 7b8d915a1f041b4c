"""The model of an engine: opened or shared, its layers replaced by the fastest ones for this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from herd.errors import CapacityError, CheckpointError, ConfigError
from herd.formats.checkpoint import Checkpoint, open_checkpoint
from herd.infer.adapters import AdaptedLinear
from herd.kernels import decoding
from herd.log import say
from herd.model.llama import Attend, LlamaForCausalLM, empty_model
from herd.ops.blocks import BlockEmbedding, BlockLinear
from herd.ops.compressed import LAYERS, Scheme, check_quantization, empty_like, takes
from herd.ops.paged_attention import paged_attention
from herd.ops.probe import available_memory
from herd.ops.quantized import DecodingLinear, Int4Linear, QuantizedLinear, replace_linears
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.lora import has_adapters, merged_model


def load_model(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: str, quantize: Scheme | None, as_stored: bool = False
) -> LlamaForCausalLM:
    """The model with the fastest layers for this machine.

    With `as_stored`, a GGUF file's blocks stay quantized if our kernels are available to compute with them.
    """
    in_blocks = as_stored and dtype is None and device == "cpu" and quantize is None and checkpoint.has_blocks
    if in_blocks and not decoding.wait():
        say(f"  {checkpoint.place}: quantized blocks are expanded, as our kernels are missing: {decoding.status()}")
        in_blocks = False
    if in_blocks:
        model = checkpoint.load_blocks(attend=paged_attention)
    else:
        model = checkpoint.load(dtype=dtype, device=device, attend=paged_attention)
    if not isinstance(model, LlamaForCausalLM):
        raise CheckpointError(f"{checkpoint.place} is a reward model, which gives scores, not text.")
    stored = model.model.norm.weight.dtype
    if dtype is None and device == "cpu" and (fast := _cpu_dtype(stored)) != stored:
        model = model.to(fast)
    if quantize is not None:
        _check_quantizable(checkpoint.place, model, quantize)
        quantize_layers(model, quantize)
    make_fast(model)
    if model.model.norm.weight.dtype == torch.float32 and device == "cpu":
        _turn_weights(model)
    return model


def _turn_weights(model: LlamaForCausalLM) -> None:
    """Let float32 matrices of the layers lie in memory as products of 4 to 100 tokens read them: 1.5 times as quick.

    The numbers stay; only the order of their rows and columns in memory changes. A model that just fits stays where it
    is, in the file's own pages.
    """
    layers = [module for name, module in model.named_modules() if type(module) is nn.Linear and name != "lm_head"]
    if sum(layer.weight.nbytes for layer in layers) > available_memory(torch.device("cpu")) / 2:
        return
    for layer in layers:
        layer.weight.data = layer.weight.data.t().contiguous().t()


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype an engine computes in, given by name or as a `torch.dtype`.

    Raises:
        ConfigError: it is not float32, bfloat16 or float16.
    """
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and chosen not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype={dtype}: the engine computes in float32, bfloat16 or float16")
    return chosen


def open_drafter(path: Path | str, model: LlamaForCausalLM, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The draft model, in the target model's dtype and on its device.

    Raises:
        CheckpointError: it is no language model, has another tokenizer, or a shorter context.
    """
    checkpoint, weight = open_checkpoint(path), model.model.norm.weight
    folder = checkpoint.place
    drafter = checkpoint.load(dtype=weight.dtype, device=str(weight.device), attend=paged_attention)
    if not isinstance(drafter, LlamaForCausalLM):
        raise CheckpointError(f"{folder} is a reward model, which cannot draft text.")
    if checkpoint.tokenizer.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(f"{folder}: a draft model must have the same tokenizer as the model it drafts for.")
    if drafter.config.max_position_embeddings < model.config.max_position_embeddings:
        most = drafter.config.max_position_embeddings
        raise CheckpointError(f"{folder}: the draft model's context ({most} tokens) is shorter than the model's.")
    make_fast(drafter)
    return drafter


def with_attention(model: LlamaForCausalLM, attend: Attend) -> LlamaForCausalLM:
    """The same model with another attention function and without adapters; weights are shared, not copied."""
    shared = empty_model(model.config, attend)
    assert isinstance(shared, LlamaForCausalLM)
    own = {name.replace(".base", ""): module for name, module in model.named_modules()}
    for name, module in own.items():
        if isinstance(module, AdaptedLinear):
            continue
        if isinstance(module, BlockLinear | BlockEmbedding):
            shared.set_submodule(name, module)
        scheme = next((scheme for scheme, kind in LAYERS.items() if type(module) is kind), None)
        if scheme is not None:
            replace_linears(shared, [name], partial(empty_like, scheme=scheme))
    shared.load_state_dict({k.replace(".base.", "."): v for k, v in model.state_dict().items()}, assign=True)
    if isinstance(shared.lm_head, nn.Linear):
        shared.tie_weights()
    return shared.eval()


def shared_model(model: LlamaForCausalLM, quantize: Scheme | None = None) -> LlamaForCausalLM:
    """A model in memory as the engine runs it: with shared weights, or with copies quantized by `quantize`.

    Adapters in training (`herd.train.lora`) are merged into copies of their layers' weights.
    """
    merged = merged_model(model) if has_adapters(model) else model
    assert isinstance(merged, LlamaForCausalLM)
    shared = with_attention(merged, paged_attention)
    if quantize is not None:
        quantize_layers(shared, quantize)
    make_fast(shared)
    return shared


def share_anew(own: LlamaForCausalLM, source: LlamaForCausalLM, quantize: Scheme | None = None) -> None:
    """Bring `own`, made by `shared_model(source)`, up to date with the current weights of `source`.

    Weights that were replaced instead of changed in place are picked up; quantized copies are quantized again.
    """
    fresh = shared_model(source, quantize)
    modules = {name.replace(".base", ""): module for name, module in own.named_modules()}
    for name, tensor in [*fresh.named_parameters(remove_duplicate=False), *fresh.named_buffers()]:
        owner, _, leaf = name.rpartition(".")
        setattr(modules[owner], leaf, tensor)


class Source:
    """A model in memory whose weights an engine shares, and their state when the engine last took them."""

    def __init__(self, model: LlamaForCausalLM, quantize: Scheme | None = None) -> None:
        self._model, self._quantize = model, quantize
        self.shared = shared_model(model, quantize)
        self._look()

    def take(self) -> None:
        """Bring the engine's model up to date with the current weights."""
        share_anew(self.shared, self._model, self._quantize)
        self._look()

    def has_changed(self, *, closely: bool) -> bool:
        """Whether weights moved, or changed in place by PyTorch's version counter, since they were taken.

        With `closely`, also whether parameters were replaced or, judged by sixteen values of each, written without
        the counter's knowledge (`weight.data.add_`).
        """
        if [_mark(weight) for weight in self._weights] != self._marks:
            return True
        if not closely:
            return False
        weights = _weights(self._model)
        return [*map(id, weights)] != [*map(id, self._weights)] or not torch.equal(_some_values(weights), self._values)

    def _look(self) -> None:
        self._weights = _weights(self._model)
        self._marks = [_mark(weight) for weight in self._weights]
        self._values = _some_values(self._weights)


def _weights(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _mark(weight: Tensor) -> tuple[int, int]:
    """Its address, and how often it was changed in place."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _some_values(weights: list[Tensor]) -> Tensor:
    parts = [weight.detach().flatten()[:: max(weight.numel() // 16, 1)][:16] for weight in weights]
    return torch.cat([part.float() for part in parts])


def _check_quantizable(folder: Path, model: LlamaForCausalLM, scheme: Scheme) -> None:
    stored = check_quantization(model.config.quantization_config, folder)
    if stored not in (None, scheme):
        raise ConfigError(f"quantize={scheme}: the weights in {folder} are already {stored}; leave quantize out")


def quantize_layers(model: LlamaForCausalLM, scheme: Scheme) -> None:
    """Quantize a model's linear layers in place; embedding, head and norms stay as they are.

    Raises:
        CapacityError: the scheme does not fit the model's shape.
    """
    if scheme == "int4":
        decoding.wait()  # two seconds at most; without the kernels quantizing takes a minute
    num_layers = model.config.num_hidden_layers
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and takes(scheme, name, num_layers)
    ]
    if not names:
        say(f"  quantize={scheme} changed nothing: the first and the last layer are never quantized")
        return
    if biased := next((name for name in names if model.get_submodule(name).bias is not None), None):
        raise CapacityError(f"quantize={scheme}: {biased} has a bias, which quantized layers do not support")
    try:
        replace_linears(model, names, cast("Any", LAYERS[scheme]).from_linear)
    except ValueError as error:
        raise CapacityError(f"quantize={scheme}: {error}; int8 fits every shape.") from None


def make_fast(model: LlamaForCausalLM) -> None:
    """Give layers in bfloat16 on a CPU the kernel for decoding, where the time goes into reading weights.

    A quantized model's head becomes int8 with a scale for each row: in bfloat16, reading it for every token would take
    as long as reading all 4-bit layers. Its embedding stays as it is.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    quantized = any(isinstance(module, QuantizedLinear | Int4Linear) for module in model.modules())
    if quantized and isinstance(model.lm_head, nn.Linear):
        replace_linears(model, ["lm_head"], QuantizedLinear.from_linear)
    weight = model.model.norm.weight
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
        names += ["lm_head"] if isinstance(model.lm_head, nn.Linear) else []
        replace_linears(model, names, DecodingLinear.from_linear)


def check_ends(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that lacks the ids that end the model's answers: it belongs to another model."""
    unknown = [token for token in as_ids(model.config.eos_token_id) if token >= tokenizer.vocab_size]
    if unknown:
        raise CheckpointError(
            f"{folder}: eos_token_id in config.json is {unknown[0]}, but the tokenizer has only "
            f"{tokenizer.vocab_size} ids: they do not belong together"
        )


def as_ids(ids: object) -> frozenset[int]:
    """Token ids as config.json has them: one, several, or none."""
    listed = ids if isinstance(ids, list | tuple) else [ids]
    return frozenset(token for token in listed if isinstance(token, int))


def _cpu_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 only where this machine computes in it well, float16 never: its products are emulated."""
    return dtype if dtype == torch.bfloat16 and decoding.computes_bf16() else torch.float32
