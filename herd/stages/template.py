"""Template: compare a checkpoint's chat template with Herd's own formatting, conversation by conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from herd.config import settings
from herd.data.rows import read_rows
from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import DataError
from herd.formats.vocabulary import open_tokenizer
from herd.tokenizer import Tokenizer
from herd.tokenizer.chat import format_name
from herd.tokenizer.compare import TALKS, Comparison, Talk, compare
from herd.tokenizer.llama3 import Style
from herd.tokenizer.specials import START_HEADER

_MAX_OWN = 200  # of the user's conversations
_CONTEXT_CHARS = 60


@settings
class TemplateSettings:
    """Compare a chat template (Jinja) with Herd's own formatting; the exit status is 1 if they differ."""

    path: Path
    """Checkpoint or tokenizer folder; or a file with a template, together with `tokenizer`."""
    tokenizer: Path | None = None
    """Checkpoint or tokenizer folder for the token ids, if `path` is a template file."""
    style: Literal["meta", "hf"] | None = None
    """Herd's chat style to compare with; default: the one for this template, none if it is not Llama 3's."""
    conversations: Path | None = None
    """Your own conversations to compare too (JSONL or Parquet, as `herd sft` takes them; the first 200)."""


def run(settings: TemplateSettings) -> int:
    """Print a line for each conversation, and the first position where the two differ."""
    tokenizer, template = _load(settings)
    style = settings.style or (cast(Style, tokenizer.chat_style) if START_HEADER in template else None)
    talks = [*TALKS, *_own(settings.conversations)]
    results = compare(tokenizer, template, style, talks)
    name = f"style `{style}`" if style else f"{format_name(tokenizer)}, written by the template itself"
    print(f"{settings.path}: {name}")
    for result in results:
        print(f"  {result.talk:<22} {result.outcome}")
        if result.outcome == "text differs":
            print(_parting(result))
    num_same = sum(result.same for result in results)
    refused = sum(result.outcome.startswith("refused by both") for result in results)
    both = f", {refused} are refused by both" if refused else ""
    print(f"{num_same} of {len(results)} conversations have the same ids{both}")
    return 0 if num_same + refused == len(results) else 1


def _load(settings: TemplateSettings) -> tuple[Tokenizer, str]:
    is_template = settings.path.suffix in (".jinja", ".jinja2", ".j2", ".txt")
    if not is_template:
        tokenizer = open_tokenizer(settings.path)
        if tokenizer.chat_template is None:
            raise DataError(f"{settings.path} has no chat template, as base models have none; give a template's file")
        return tokenizer, tokenizer.chat_template
    if settings.tokenizer is None:
        raise DataError(f"{settings.path}: a template alone; say whose ids to use with tokenizer=FOLDER")
    try:
        template = settings.path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{settings.path}: cannot be read ({error})") from None
    return open_tokenizer(settings.tokenizer).with_template(template), template


def _own(path: Path | None) -> list[Talk]:
    talks: list[Talk] = []
    notes = Notes()
    for place, row in read_rows(path) if path else ():
        if len(talks) == _MAX_OWN:
            break
        for talk in talks_of(row, notes):
            messages = talk.messages
            while (
                messages and messages[-1].get("role") == "assistant"
            ):  # the template's prompt for an answer comes next
                messages = messages[:-1]
            if messages:
                talks.append(Talk(place, messages, talk.tools))
    notes.tell()
    return talks


def _parting(result: Comparison) -> str:
    """The first position where the two texts differ, with its surroundings."""
    pairs = enumerate(zip(result.theirs, result.ours))
    shorter = min(len(result.theirs), len(result.ours))
    begin = max(0, next((i for i, (a, b) in pairs if a != b), shorter) - _CONTEXT_CHARS // 2)
    shown = (text[begin : begin + _CONTEXT_CHARS] for text in (result.theirs, result.ours))
    return "\n".join(f"      {name:<9} ...{text!r}" for name, text in zip(("template:", "herd:"), shown))
