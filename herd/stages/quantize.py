"""Quantize: weights in 8 or 4 bits, and the change in size, speed, bits per byte and predictions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from herd.config import settings
from herd.data.shards import open_heldout
from herd.evals.answers import prompt_of
from herd.evals.quantized import qualities, speeds
from herd.formats.checkpoint import open_checkpoint
from herd.infer.quantize import MEMORY_BYTES, Quantized, quantize_folder, quantized_bytes
from herd.log import say, size
from herd.post.prompts import read_prompts
from herd.post.reward import RewardModel, distribution_shift
from herd.post.sampling import sample_answers
from herd.run import Run, open_run
from herd.types import SamplingParams

Scheme = Literal["int8", "int4", "fp8"]


@settings
class QuantizeSettings:
    """Make a smaller copy of a checkpoint and measure it beside the original."""

    checkpoint: Path
    """Checkpoint or run folder of a language model."""
    out: Path
    """Run folder to write; the copy is its `checkpoint/`."""
    scheme: Scheme = "int8"
    """int8: a scale per row. int4: a scale per 32 weights. fp8: the paper's, for GPUs; see herd/ops/fp8.py."""
    memory_bytes: int = MEMORY_BYTES
    """Memory that quantizing may use besides the tensor it reads, in bytes."""
    shards: Path | None = None
    """Run folder of `herd pack`, to measure bits per byte on its held-out documents."""
    max_bytes: int = 30_000
    """Held-out text per source, in bytes; whole documents, spread evenly."""
    context_tokens: int | None = None
    """Context for bits per byte, in tokens; default: the model's own, at most 1024."""

    reward: Path | None = None
    """A reward model: both models' answers to `prompts` are scored and the distributions compared (paper 6.2)."""
    prompts: Path | None = None
    """Prompts for `reward`: JSONL or Parquet rows with `messages` or `prompt`."""
    answers: int = 1000
    """Answers scored per model, spread over the prompts."""
    answer_tokens: int = 128
    """Longest such answer, in tokens."""
    also: tuple[Scheme, ...] = ()
    """Other schemes whose answers are scored too, side by side; their copies are not kept."""

    def __post_init__(self):
        if (self.reward is None) != (self.prompts is None):
            raise ValueError("give both reward and prompts, or neither")
        if self.also and self.reward is None:
            raise ValueError("also is for the comparison of rewards: give reward and prompts")
        if min(self.answers, self.answer_tokens) < 1:
            raise ValueError("answers and answer_tokens must be at least 1")
        if self.memory_bytes < 1_000_000:
            raise ValueError("memory_bytes must be at least 1000000")
        if self.max_bytes < 1 or (self.context_tokens or 2) < 2:
            raise ValueError("max_bytes must be at least 1 and context_tokens at least 2")


def run(settings: QuantizeSettings) -> Path:
    """Write the quantized `checkpoint/`; the figures compare it with the original."""
    inputs = {name: getattr(settings, name) for name in ("checkpoint", "shards", "reward", "prompts")}
    with open_run(settings.out, stage="quantize", settings=settings, inputs=inputs) as run:
        if run.finished:
            return run.path
        source = open_checkpoint(settings.checkpoint)
        heldout = open_heldout(settings.shards) if settings.shards else {}
        run.need(disk_bytes=quantized_bytes(source, settings.scheme))
        change = quantize_folder(source, run.path / "checkpoint", settings.scheme, settings.memory_bytes)
        target = open_checkpoint(run.path / "checkpoint")
        figures = _sizes(change) | speeds(source, target)
        most, context = settings.max_bytes, settings.context_tokens
        figures |= qualities(source, target, heldout, max_bytes=most, context_tokens=context)
        if settings.reward and settings.prompts:
            figures |= _rewards(run, settings, source.place)
        _tell(run, figures)
        run.finish(figures)
    return run.path


def _rewards(run: Run, settings: QuantizeSettings, original: Path) -> dict[str, float]:
    """Compare the rewards of both models' answers, which may differ when bits per byte do not.

    Source: The Llama 3 Herd of Models, section 6.2 (standard benchmarks miss some damage by wrong scales).
    """
    assert settings.reward and settings.prompts
    rows = read_prompts(settings.prompts, settings.answers)
    samples = -(-settings.answers // len(rows))
    asked: list[Any] = [prompt_of(row) for row in rows]
    params = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=settings.answer_tokens, n=samples, seed=0)
    model = RewardModel(settings.reward)

    def scores(name: str, place: Path) -> list[list[float]]:
        texts = sample_answers(place, asked, params, run.path / "state" / name, label=f"answers {name}")
        talks = [[*prompt, {"role": "assistant", "content": one}] for prompt, many in zip(asked, texts) for one in many]
        rewards = iter(model.score(talks))
        return [[next(rewards) for _ in many] for many in texts]

    before, figures = scores("before", original), dict[str, float]()
    for scheme in dict.fromkeys((settings.scheme, *settings.also)):
        copy = run.path / "checkpoint"
        if scheme != settings.scheme:
            copy = run.path / "state" / f"copy-{scheme}"
            shutil.rmtree(copy, ignore_errors=True)
            quantize_folder(open_checkpoint(original), copy, scheme, settings.memory_bytes)
        shift = distribution_shift(before, scores("after" if scheme == settings.scheme else scheme, copy))
        _tell_rewards(scheme, shift)
        figures |= {name if scheme == settings.scheme else f"{name}/{scheme}": one for name, one in shift.items()}
        if scheme != settings.scheme:
            shutil.rmtree(copy)
    return figures


def _tell_rewards(scheme: str, figures: dict[str, float]) -> None:
    say(
        f"  {scheme}: rewards of {figures['reward_answers']:,} answers each: mean {figures['reward_before']:.3f} -> "
        f"{figures['reward_after']:.3f} ({figures['reward_change_low']:+.3f} to {figures['reward_change_high']:+.3f}); "
        f"the distributions are {figures['reward_distance']:.3f} apart, by chance "
        f"{figures['reward_distance_by_chance']:.3f}"
    )


def _sizes(change: Quantized) -> dict[str, float]:
    return {
        "weights_bytes_before": change.bytes_before,
        "weights_bytes_after": change.bytes_after,
        "size_ratio": round(change.bytes_after / change.bytes_before, 4),
        "quantized_layers": change.num_layers,
    }


def _tell(run: Run, figures: dict[str, float]) -> None:
    def change(name: str) -> str:
        return " -> ".join(str(figures.get(f"{name}_{when}", "?")) for when in ("before", "after"))

    before, after = figures["weights_bytes_before"], figures["weights_bytes_after"]
    say(f"  weights {size(before)} -> {size(after)}, decoding {change('decode_tokens_per_second')} tokens/s")
    if "kl_nats_per_token" in figures:
        say(
            f"  bits per byte {change('heldout_bits_per_byte')}, KL {figures['kl_nats_per_token']} nats a token, "
            f"{figures['same_likeliest_token']:.1%} the same likeliest token"
        )
    say(f"  {run.path / 'checkpoint'} opens in transformers and vLLM (with compressed-tensors)")
