"""Search: in one's own index, and by a search engine that one names; built for a model to read."""

from __future__ import annotations

import asyncio
import html
import json
import re
from typing import Any
from urllib.parse import quote_plus, urlsplit

from herd.errors import ConfigError, UserError
from herd.knowledge.index import Hit, Index
from herd.toolbox.errand import Errand, Failed, function, text_argument
from herd.wire import Clock, Fault, Wire

_MAX_BYTES = 2_000_000
_SECONDS = 20.0
_RESULTS = 5


def told(hits: list[Hit], numbers: list[int]) -> str:
    """Passages as a model reads them, each with its number and where it stands."""
    return "\n\n".join(f"[{number}] {hit.source}\n{hit.text}" for number, hit in zip(numbers, hits, strict=True))


class Documents:
    """`search_documents`: passages of an index that `herd index` made; they are cited by the program."""

    def __init__(self, index: Index, *, name: str = "search_documents", limit: int = _RESULTS) -> None:
        self._index, self._limit = index, limit
        self.function = function(name, "Searches the user's own documents for passages.", query="a few words to find")

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """The passages nearest to the query.

        Raises:
            Failed: nothing was found, or the query holds no word.
        """
        query = text_argument(arguments, "query")
        try:
            hits = await asyncio.to_thread(self._index.search, query, self._limit)
        except UserError as error:
            raise Failed(str(error)) from None
        if not hits:
            raise Failed("the documents hold nothing on this; try other words")
        return told(hits, errand.found(hits))


class WebSearch:
    """`brave_search`: a search engine by its address, with `{query}` where the words go; its answer is JSON.

    SearXNG's form (`results` of `title`, `url`, `content`) and Brave's (`web.results` of `title`, `url`,
    `description`) are read. `key` is sent as Brave's `X-Subscription-Token`.

    Raises:
        ConfigError: no address of such a form.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        if address.count("{query}") != 1:
            raise ConfigError(
                f"search: {address!r} has no place for the words; expected http://host/search?q={{query}}"
            )
        parts = urlsplit(address)
        if "{query}" not in parts.query:
            raise ConfigError(f"search: expected {{query}} behind the ? of {address!r}")
        self._query = parts.query
        self._wire = Wire(f"{parts.scheme}://{parts.netloc}{parts.path}", {"X-Subscription-Token": key} if key else {})
        self.function = function("brave_search", "Searches the web.", query="what to search for")

    async def call(self, arguments: dict[str, Any], errand: Errand) -> str:
        """Titles, addresses and a few lines of each result.

        Raises:
            Failed: the engine cannot be reached, or answers something else.
        """
        return await asyncio.to_thread(self._asked, text_argument(arguments, "query"), errand)

    def _asked(self, query: str, errand: Errand) -> str:
        try:
            exchange = self._wire.send(f"?{self._query.replace('{query}', quote_plus(query))}", None, Clock(_SECONDS))
            try:
                if exchange.status != 200:
                    raise Failed(f"the search engine answered {exchange.status}: {exchange.reason()}")
                data = json.loads(exchange.whole(_MAX_BYTES))
            finally:
                exchange.close()
        except Fault as fault:
            raise Failed(f"the search engine {fault}") from None
        except (ValueError, RecursionError):
            raise Failed("the search engine did not answer in JSON") from None
        hits = _results(data)[:_RESULTS]
        if not hits:
            raise Failed("nothing was found; try other words")
        return told(hits, errand.found(hits))


def _results(data: Any) -> list[Hit]:
    found = data.get("results") if isinstance(data, dict) else None
    if found is None and isinstance(data, dict) and isinstance(data.get("web"), dict):
        found = data["web"].get("results")
    if not isinstance(found, list):
        raise Failed("the search engine's JSON holds no `results`")
    hits = []
    for one in found:
        if isinstance(one, dict) and isinstance(one.get("url"), str):
            text = str(one.get("content") or one.get("description") or "")
            text = html.unescape(re.sub(r"<[^>]*>", "", text))
            if text.strip():
                hits.append(Hit(one["url"], str(one.get("title") or ""), "", text, 0.0, ("web",), False))
    return hits
