"""Conversations to tokens, in the checkpoint's own chat format.

    render(tokenizer, messages, generation_prompt=True).tokens     the prompt for an answer
    render(tokenizer, messages)                                    tokens and loss mask, for training
    stops(tokenizer)                                               what ends an answer

The format is that of the checkpoint's chat template. For Llama 3's, Herd's own implementation (`herd.tokenizer.llama3`)
is used, after comparing it with the template on a set of conversations. All other templates are run
(`herd.tokenizer.foreign`). A checkpoint without a template has no format unless one is named (`named_template`).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from herd.errors import ConfigError, DataError
from herd.tokenizer import foreign, llama3
from herd.tokenizer.compare import compare
from herd.tokenizer.foreign import Asked, Ends
from herd.tokenizer.llama3 import DATE, Rendered, Style
from herd.tokenizer.specials import END_HEADER, END_OF_MESSAGE, END_OF_TURN, START_HEADER
from herd.tokenizer.template import META_TEMPLATE, TEMPLATES
from herd.tokenizer.tokenizer import Tokenizer
from herd.tokenizer.toolcalls import Format
from herd.types import Message

_ALIKE = ("same", "ids differ")  # ids differ if a message begins with a line break, which is encoded separately
_styles: weakref.WeakKeyDictionary[Tokenizer, Style | None] = weakref.WeakKeyDictionary()


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    generation_prompt: bool = False,
    style: Style | None = None,
    tools: Sequence[Any] | None = None,
    tool_format: Format = "json",
    date: str | None = None,
    documents: Sequence[Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    continue_final: bool = False,
    read_special: bool = False,
) -> Rendered:
    """Tokens and loss mask of a conversation; the assistant's messages and their end tokens are trained on.

    `generation_prompt` adds the header of an answer (without a mask); `continue_final` leaves the last message open.
    `tools` (OpenAI's schemas), `documents` and further `variables` are passed to the template. `date` is its current
    date (26 Jul 2024 or 2024-07-26; default: today). `style` selects Llama 3's format in that style, whatever the
    template, and `tool_format` how style `meta` announces and calls tools. `read_special` reads special strings in
    messages as special tokens: only for text that you wrote yourself.

    Raises:
        DataError: there is no template, it refuses the conversation, or the assistant's messages are not in its output.
    """
    needs_template = documents or variables or continue_final or read_special
    own = style or (None if needs_template else own_style(tokenizer))
    if own is not None:
        options: dict[str, Any] = {"tools": tools, "tool_format": tool_format, "date": _own_date(tokenizer, own, date)}
        return llama3.render(tokenizer, messages, generation_prompt=generation_prompt, style=own, **options)
    return foreign.render(
        tokenizer,
        messages,
        Asked(tools, documents, date, variables or {}),
        generation_prompt=generation_prompt,
        continue_final=continue_final,
        masked=not generation_prompt,
        read_special=read_special,
    )


def _own_date(tokenizer: Tokenizer, style: Style, date: str | None) -> str | None:
    """The date in the date lines: today if the template asks for it."""
    if style == "hf" and date is None and "strftime_now" in (tokenizer.chat_template or ""):
        return datetime.now().strftime("%d %b %Y")
    return date


def own_style(tokenizer: Tokenizer) -> Style | None:
    """The template's style of Llama 3's format; None if there is no template or it has another format.

    Text and ids are compared on conversations with and without system prompt, tools and other scripts.
    """
    template = tokenizer.chat_template
    if template == META_TEMPLATE:
        return "meta"
    if template is None or START_HEADER not in template or tokenizer.template_for(True) != template:
        return None
    if tokenizer not in _styles:
        style = cast(Style, tokenizer.chat_style)
        names = {START_HEADER, END_HEADER, END_OF_TURN, END_OF_MESSAGE}
        same = names <= tokenizer.special.keys() and tokenizer.bos in tokenizer.special
        same = same and all(one.outcome in _ALIKE for one in compare(tokenizer, template, style, date=DATE))
        _styles[tokenizer] = style if same else None
    return _styles[tokenizer]


def tells_tools(tokenizer: Tokenizer) -> bool:
    """Whether the format announces tools to the model: many templates ignore them."""
    return own_style(tokenizer) is not None or re.search(r"\btools\b", tokenizer.template_for(True) or "") is not None


_FAMILIES = (("<|im_start|>", "ChatML"), ("[INST]", "Llama 2 or Mistral"), ("<start_of_turn>", "Gemma"))


def format_name(tokenizer: Tokenizer) -> str | None:
    """The name of the chat format: `Llama 3, style meta`, a family's name, or `its own`; None without a template."""
    template = tokenizer.chat_template
    if template is None:
        return None
    if style := own_style(tokenizer):
        return f"Llama 3, style {style}"
    known = next((name for name, text in TEMPLATES.items() if text == template), None)
    return known or next((name for sign, name in _FAMILIES if sign in template), "its own")


def ends(tokenizer: Tokenizer) -> Ends:
    """What the format writes after an answer; a text only if it has no token for it."""
    own = own_style(tokenizer)
    return foreign.ends(tokenizer) if own is None else Ends((tokenizer.eot_id,))


def stops(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer: the vocabulary's end tokens, and the template's end of turn."""
    return tuple(sorted({*tokenizer.stop_ids, *ends(tokenizer).ids}))


def named_template(name: str) -> str:
    """A chat template by the name of a known format, or from a file.

    Raises:
        ConfigError: there is no such format or file.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"template={name}: expected {', '.join(TEMPLATES)} or a file with a template ({error})"
        ) from None


def in_format(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The tokenizer with the template of a named format.

    Raises:
        ConfigError: there is no such format, or the vocabulary lacks its special tokens.
    """
    template = named_template(name)
    needed = [token for token in _NEEDED.get(name, ()) if token not in tokenizer.special]
    if needed:
        raise ConfigError(
            f"template={name}: this vocabulary has no {needed[0]}; choose a format whose special tokens it has"
        )
    return tokenizer.with_template(template)


_NEEDED = {"llama3": (START_HEADER, END_HEADER, END_OF_TURN), "chatml": ("<|im_start|>", "<|im_end|>")}


def formatting_mask(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[bool]:
    """Which tokens are formatting, not content: special tokens and, in Llama 3's format, roles. DPO masks them.

    Source: The Llama 3 Herd of Models, section 4.1.4.
    """
    if own_style(tokenizer) is not None:
        return llama3.formatting_mask(tokenizer, tokens)
    special = tokenizer.special_ids | set(stops(tokenizer))
    return [token in special for token in tokens]


def require_trained(rendered: Rendered) -> Rendered:
    """Check that a conversation can be trained on; returns it.

    Raises:
        DataError: no token of it is trained on, or all are.
    """
    if not any(rendered.mask):
        raise DataError("no token of this conversation is trained on: it has no assistant message")
    if all(rendered.mask):
        raise DataError("all tokens of this conversation are trained on: its loss mask excludes no prompt")
    return rendered
