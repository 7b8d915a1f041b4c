"""What a model in training writes: a few prompts continued, kept beside the run's other figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from herd.data.loader import PackedLoader
from herd.infer.engine import Engine
from herd.log import say
from herd.model.llama import Llama, LlamaForCausalLM
from herd.parallel.model import ParallelModel
from herd.run import Run, atomic_write
from herd.tokenizer.tokenizer import Tokenizer
from herd.train.checkpoint import is_first
from herd.types import Completion, SamplingParams


def sampler(
    run: Run,
    model: Llama | ParallelModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    num_steps: int,
    loader: PackedLoader,
    seed: int = 0,
) -> Callable[[int], None]:
    """A hook that lets the model continue the prompts and keeps what it wrote, once for each step.

    Rows of `training_samples.jsonl`: step, share (0 to 1) of the run, tokens, and each prompt with its text.
    """
    file = run.path / "training_samples.jsonl"

    def write(step: int) -> None:
        if not prompts or not is_first():
            return
        if isinstance(model, ParallelModel):
            say("  prompts are passed over: no process holds the whole model to continue them")
            return
        assert isinstance(model, LlamaForCausalLM)
        engine = Engine.of(model, tokenizer)
        params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=60, seed=seed)
        answers = engine.generate(list(prompts), params)
        texts = [answer.text for answer in answers if isinstance(answer, Completion)]
        samples = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts)]
        row = {"step": step, "share": step / num_steps, "tokens": loader.tokens_before(step), "samples": samples}
        earlier = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        rows = [*(old for old in earlier if old["step"] < step), row]
        atomic_write(file, "".join(json.dumps(row) + "\n" for row in rows))
        for sample in samples[:1]:
            say(f"\n  at {step / num_steps:.0%} it writes: {sample['prompt']}{sample['text']!r}")

    return write
