"""Stop strings, also when they span several tokens."""

from __future__ import annotations


class StopStrings:
    """Passes text on until one of the stop strings appears; holds back text that may be the beginning of one.

    Example: with the stop string "END", pushing "a E" and "N" returns "a " and ""; then "D" sets `found`, and the text
    is "a ", while "X" would return "ENX". `which` is the stop string that was found.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.which: str | None
        self.found, self.which = False, None
        self._held = ""

    def push(self, text: str, *, may_end: bool = True) -> str:
        """The text that is now certain to be before any stop string. Without `may_end`, stop strings are plain text."""
        if not self.stops:
            return text
        if self.found:
            return ""
        text = self._held + text
        places = [(place, stop) for stop in self.stops if may_end and (place := text.find(stop)) >= 0]
        if places:
            place, self.which = min(places)
            self.found, self._held = True, ""
            return text[:place]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, once no more follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
