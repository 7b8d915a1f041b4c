"""Summarise a file of any length, a whole book: its parts, then their summaries, until one is left.

`herd summarize book.pdf MODEL`; MODEL is a checkpoint, a run folder, or a server's address. Without one the summary is
made of the text's own sentences. Each sentence is held against the text and marked where nothing there says it.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from herd.config import settings
from herd.errors import DataError, RequestError
from herd.evals.answers import rouge_l
from herd.infer.settings import EngineSettings
from herd.knowledge.apart import read_apart
from herd.knowledge.summaries import Summary, central, share_supported, summarized, supported
from herd.log import say
from herd.serve.terminal.local import Local
from herd.serve.terminal.speaker import open_speaker
from herd.types import Message, SamplingParams

_AROUND = 200  # tokens of the request around a part
_LETTERS_A_TOKEN = 3  # as a server's tokens are counted from here: rather too many than too few


@settings
class SummarizeSettings:
    """What to summarise, and by whom."""

    bare_words: ClassVar = ("file", "path")

    file: Path
    """The file: text, Markdown, HTML, PDF, docx, pptx, xlsx, code."""
    path: str | None = None
    """Checkpoint or run folder, or the address of a server (http://...); the text's own sentences when not given."""
    model: str | None = None
    """Which of a server's models; its first one when not given."""
    words: int = 120
    """Longest summary, in words."""
    window: int = 4096
    """Tokens that the model is given at once, its answer included; less where its context is shorter."""
    reference: Path | None = None
    """Summary to compare with (ROUGE-L)."""
    json: bool = False
    """Print one JSON object."""
    device: str = "cpu"
    """Where the model runs: cpu or cuda."""
    engine: EngineSettings = EngineSettings()
    """How the model is run."""

    def __post_init__(self) -> None:
        if self.words < 5 or self.window < 2 * _AROUND:
            raise ValueError(f"words: expected 5 or more; window: {2 * _AROUND} or more")


def run(settings: SummarizeSettings) -> None:
    """Print the summary, with what the text does not say marked.

    Raises:
        DataError: the file holds no text that can be read.
        CheckpointError: there is no model.
        RequestError: the model was not trained on conversations, or has too short a context.
    """
    text = _read(settings.file)
    if settings.path is None:
        found = Summary(central(text, settings.words), 1, 1, 0)
    else:
        ask, count, window = _asking(settings, settings.path)
        room = window - _AROUND - 2 * settings.words
        if room < settings.words:
            raise RequestError(
                f"a window of {window} tokens is too short for {settings.words} words; give fewer words="
            )
        found = summarized(text, ask, count, room=room, words=settings.words)
    checked = supported(found.text, text)
    figures = {"supported": round(share_supported(checked), 3), "sentences": len(checked)}
    if settings.reference is not None:
        figures["rouge_l"] = round(rouge_l(found.text, _read(settings.reference)), 4)
    if settings.json:
        sentences = [{"sentence": one.sentence, "verdict": one.verdict, "quote": one.quote} for one in checked]
        print(json_format.dumps(asdict(found) | figures | {"checked": sentences}, ensure_ascii=False, indent=1))
        return
    marked = found.text
    for one in checked:
        if one.verdict != "supported":
            marked = marked.replace(one.sentence, f"{one.sentence} [{one.verdict}]", 1)
    print(marked)
    more = f", ROUGE-L {figures['rouge_l']:.3f}" if "rouge_l" in figures else ""
    counted = (
        f"{found.num_parts:,} parts, {found.levels} levels, {found.num_asked:,} questions; " if settings.path else ""
    )
    say(f"{counted}{figures['supported']:.0%} of {len(checked)} sentences stand in the text{more}")


def _asking(settings: SummarizeSettings, path: str) -> tuple[Callable[[str], str], Callable[[str], int], int]:
    """What asks the model, counts tokens, and how many it is given at once."""
    params = SamplingParams(temperature=0.0, max_tokens=2 * settings.words)
    options = settings.engine.options()
    speaker = open_speaker(path, params, model=settings.model, device=settings.device, **options)
    if not speaker.speaks_chat:
        raise RequestError(f"{path} is a base model, never trained on conversations; choose one that was")

    def ask(prompt: str) -> str:
        return "".join(piece for piece, _ in speaker.stream([Message(role="user", content=prompt)], params)).strip()

    if isinstance(speaker, Local):
        tokenizer = speaker.engine.tokenizer
        window = min(settings.window, speaker.engine.max_context)
        return ask, lambda text: len(tokenizer.encode(text)), window
    return ask, lambda text: len(text) // _LETTERS_A_TOKEN + 1, settings.window


def _read(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    sections, problem = read_apart(file.name, content)
    if problem:
        raise DataError(f"{file}: {problem[0]} ({problem[1]}); expected a file with text")
    return "\n\n".join("\n\n".join(filter(None, (one.heading.rpartition(" > ")[2], one.text))) for one in sections)
