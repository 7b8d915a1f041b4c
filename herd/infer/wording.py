"""How inputs become prompts: the chat format, and the tokens that end an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from herd.errors import RequestError
from herd.infer.inputs import Input, is_one
from herd.tokenizer.chat import ends, in_format, own_style, render
from herd.tokenizer.specials import END_OF_TURN
from herd.tokenizer.template import META_TEMPLATE
from herd.tokenizer.tokenizer import Tokenizer
from herd.types import Message


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The options of `Engine` about prompts, under the same names; its docstring says what each means."""

    template: str | None = None
    date: str | None = None
    read_special: bool = False

    def settled(self, tokenizer: Tokenizer, declared: frozenset[int]) -> Tokenizer:
        """The tokenizer with the chat template to use: the one named by `template`, or its own.

        Without either, a model whose `eos_token_id` includes Llama 3's end of turn gets Llama 3's format.

        Raises:
            ConfigError: there is no format of that name, or the vocabulary lacks its special tokens.
        """
        if self.template is not None:
            return in_format(tokenizer, self.template)
        if tokenizer.chat_template is None and tokenizer.special.get(END_OF_TURN) in declared:
            return tokenizer.with_template(META_TEMPLATE)
        return tokenizer

    def speaks_chat(self, tokenizer: Tokenizer, declared: frozenset[int]) -> bool:
        """Whether the model was trained on conversations, that is, has a chat template.

        Base models written by Herd have its template too: there the end of turn must also be an `eos_token_id`.
        """
        if tokenizer.chat_template is None:
            return False
        if self.template is not None or own_style(tokenizer) != "meta":
            return True
        return tokenizer.eos == END_OF_TURN or tokenizer.special.get(END_OF_TURN) in declared

    def end_of_answer(self, tokenizer: Tokenizer, speaks_chat: bool) -> int | None:
        """The token that ends an answer under a grammar."""
        if speaks_chat:
            end_ids = (tokenizer.eot_id,) if own_style(tokenizer) else ends(tokenizer).ids
            if end_ids:
                return end_ids[0]
        return tokenizer.eos_id if tokenizer.stop_ids else None

    def encode(self, tokenizer: Tokenizer, inputs: Input) -> list[int]:
        """The prompt tokens of an input.

        Raises:
            RequestError: it is neither a string nor a list of messages.
            DataError: the format cannot hold the conversation.
        """
        if isinstance(inputs, str):
            return tokenizer.encode(inputs, bos=True, allow_special=self.read_special)
        if not is_one(inputs):
            raise RequestError(f"An input is a string or a list of messages, not {type(inputs).__name__}.")
        talk = cast("list[Message]", inputs)
        return render(tokenizer, talk, generation_prompt=True, date=self.date, read_special=self.read_special).tokens
