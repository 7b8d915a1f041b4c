"""What a model thinks before it answers, told apart from the answer: the text between `<think>` and `</think>`."""

from __future__ import annotations

from herd.tokenizer.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"
BEFORE_ANSWER = 0.75
"""The share of an answer's tokens that may be thought; then the thought is closed, so that an answer follows."""


def thinks(tokenizer: Tokenizer) -> bool:
    """Whether a model's chat format has thoughts."""
    return CLOSE in (tokenizer.chat_template or "")


class ThoughtReader:
    """Sorts a text that grows into thought and answer; a thought stands at its beginning, or nowhere.

    `opened` where the prompt ends with `<think>`.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self.state = "thought" if opened else "start"
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """The thought, and the answer, that a piece brings."""
        if self.state == "answer":
            return "", text
        self._held += text
        if self.state == "start":
            begins = self._held.lstrip()
            if OPEN.startswith(begins) and len(begins) < len(OPEN):
                return "", ""
            if not begins.startswith(OPEN):
                self.state = "answer"
                return "", self._let_go()
            self.state, self._held = "thought", begins.removeprefix(OPEN)
        if self.state == "thought":
            thought, close, rest = self._held.partition(CLOSE)
            if not close:
                kept = next((n for n in range(len(CLOSE) - 1, 0, -1) if self._held.endswith(CLOSE[:n])), 0)
                thought, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
                return thought, ""
            self.state, self._held = "after", rest
            return thought, self._opened_answer()
        return "", self._opened_answer()

    def finish(self) -> tuple[str, str]:
        """What was held back, once nothing follows."""
        held = self._let_go()
        return (held, "") if self.state == "thought" else ("", "" if self.state == "after" else held)

    def _opened_answer(self) -> str:
        """The answer without the line breaks between it and the thought."""
        self._held = self._held.lstrip()
        if not self._held:
            return ""
        self.state = "answer"
        return self._let_go()

    def _let_go(self) -> str:
        held, self._held = self._held, ""
        return held
