"""A model that grades: a checkpoint here, or an OpenAI-compatible server."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from herd.config import settings
from herd.curate.judge.grades import Ask
from herd.errors import CheckpointError, ConfigError
from herd.infer.engine import Engine
from herd.types import SamplingParams


@settings
class Judge:
    """The model that grades."""

    endpoint: str | None = None
    """An OpenAI-compatible server to ask, such as http://localhost:8000/v1 (vLLM, SGLang, `herd serve`)."""
    model: str = "default"
    """The model's name at that server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key, if it wants one."""
    checkpoint: Path | None = None
    """A local chat checkpoint to ask instead."""
    sample: int = 2000
    """Documents that are graded."""
    characters: int = 4000
    """Of a document the judge sees so many characters."""
    answer_tokens: int = 200
    """Longest answer, in tokens."""
    concurrency: int = 16
    """Questions under way at the same time at a server."""

    def __post_init__(self):
        if self.endpoint and self.checkpoint:
            raise ValueError("endpoint and checkpoint exclude each other")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint: expected an address such as http://localhost:8000/v1, got {self.endpoint!r}")
        if min(self.sample, self.characters, self.answer_tokens, self.concurrency) < 1:
            raise ValueError("sample, characters, answer_tokens and concurrency must be at least 1")


def asks(judge: Judge) -> Ask:
    """The function that puts prompts to the judge and gives its answers, in order."""
    return _ask_checkpoint(judge) if judge.checkpoint else _ask_server(judge)


def _ask_checkpoint(judge: Judge) -> Ask:
    engine = Engine(judge.checkpoint)
    params = SamplingParams(temperature=0.0, max_tokens=judge.answer_tokens)

    def ask(prompts: list[str]) -> list[str]:
        answers = engine.generate([[{"role": "user", "content": prompt}] for prompt in prompts], params)
        return [answer.text for answer in answers]

    return ask


def _ask_server(judge: Judge) -> Ask:
    """Ask an OpenAI-compatible server; a busy one is asked again, a fault is told with what the server said."""
    url = judge.endpoint.rstrip("/") + "/chat/completions"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(judge.key_variable):
        headers["Authorization"] = f"Bearer {key}"

    def ask_one(prompt: str) -> str:
        body = {"model": judge.model, "messages": [{"role": "user", "content": prompt}]}
        body |= {"temperature": 0, "max_tokens": judge.answer_tokens}
        for attempt in range(6):
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=600) as response:
                    answer = json.load(response)["choices"][0]["message"]["content"] or ""
                if not isinstance(answer, str):
                    raise TypeError("its answer is no text")
                return answer
            except urllib.error.HTTPError as error:
                if error.code not in (429, 500, 502, 503, 504) or attempt == 5:
                    said = error.read().decode(errors="replace")[:300]
                    raise ConfigError(f"{url}: the judge answered {error.code}: {said}") from None
            except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
                if attempt == 5:
                    raise ConfigError(f"{url}: the judge cannot be asked: {error}; is the server running?") from None
            time.sleep(min(30, 0.5 * 2**attempt))
        raise CheckpointError(f"{url}: the judge did not answer")

    pool = ThreadPoolExecutor(judge.concurrency)
    return lambda prompts: list(pool.map(ask_one, prompts))
