"""Any OpenAI-compatible endpoint (vLLM, SGLang, another Herd server) in the place of an engine.

    engine = RemoteEngine("http://gpu-box:8000/v1")
    engine.generate([{"role": "user", "content": "Hello"}], herd.SamplingParams(n=8))

What the recipe asks of it is tried on one token before anything is sampled: an endpoint that lacks something is refused
up front, by name.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from herd.errors import CapacityError, RequestError
from herd.infer.request import check_params
from herd.types import Completion, Conversation, SamplingParams, TokenLogprob

_NUM_AT_ONCE = 16
_NUM_TRIES, _PAUSE_SECONDS = 4, 1.0  # for an endpoint that is busy (429) or away for a moment (502, 503)
_LIST_SECONDS = 30.0  # for the list of models, which computes nothing
_STRANGE = "does not answer as an OpenAI-compatible endpoint"
_NOT_OFFERED = ("prompt_logprobs", "adapter", "best_of")  # an adapter is a model of its own there


class RemoteEngine:
    """Samples from an endpoint; `url` ends before `/chat/completions`, usually in `/v1`.

    `model` may be left out where the endpoint serves one. `key` is sent as a bearer token.

    Raises:
        CapacityError: the endpoint cannot be reached.
        RequestError: it serves several models and none was named, or not the one that was.
    """

    def __init__(
        self, url: str, *, model: str | None = None, key: str | None = None, timeout_seconds: float = 600
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"engine={url}: expected the address of an endpoint, such as http://localhost:8000/v1")
        self.url, self._key, self._timeout = url.rstrip("/"), key, timeout_seconds
        self.model = self._choose(model)
        self._tried: set[str] = set()

    def generate(
        self, inputs: str | Conversation | Sequence[str | Conversation], params: SamplingParams | None = None
    ) -> Any:
        """As `Engine.generate`: one answer or a list for `n`, and a list of these for a list of inputs.

        Token ids are not known here: `Completion.tokens` is empty.

        Raises:
            RequestError: the endpoint lacks something that the settings ask for, or refused a request.
            CapacityError: it does not answer.
        """
        params = params or SamplingParams()
        check_params(params)
        single = isinstance(inputs, str) or (bool(inputs) and all(isinstance(item, dict) for item in inputs))
        batch = [inputs] if single else list(inputs)
        if batch:
            self.check(batch[0], params)
        with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
            answers = list(pool.map(lambda item: self._ask(item, params), batch))
        shaped = [found[0] if params.n == 1 else found for found in answers]
        return shaped[0] if single else shaped

    def check(self, example: str | Conversation, params: SamplingParams) -> None:
        """Try the settings on one token of one input; once for each set of fields.

        Raises:
            RequestError: naming what the endpoint lacks.
        """
        lacking = [name for name in _NOT_OFFERED if getattr(params, name) is not None]
        if lacking:
            raise RequestError(f"{self.url}: {', '.join(lacking)} cannot be asked of an endpoint; use a local engine.")
        fields = json.dumps(sorted(_body(params)))
        if fields in self._tried:
            return
        found = self._ask(example, replace(params, max_tokens=1, min_tokens=0))
        if params.logprobs is not None and any(answer.logprobs is None for answer in found):
            raise RequestError(f"{self.url} gives no logprobs, which are needed here.")
        if params.seed is not None and params.temperature > 0 and self._is_random(example, params):
            raise RequestError(f"{self.url} does not honour seed: the same request gave two different answers.")
        self._tried.add(fields)

    def _is_random(self, example: str | Conversation, params: SamplingParams) -> bool:
        few = replace(params, max_tokens=8, min_tokens=0, n=1, logprobs=None)
        first, second = (self._ask(example, few)[0].text for _ in range(2))
        return first != second

    def _ask(self, item: str | Conversation, params: SamplingParams) -> list[Completion]:
        chat = not isinstance(item, str)
        body = {"model": self.model, **_body(params)}
        if params.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": params.logprobs} if chat else {"logprobs": params.logprobs}
        body |= {"messages": item} if chat else {"prompt": item}
        found = self._call("/chat/completions" if chat else "/completions", body)
        try:
            choices = sorted(found.get("choices", []), key=lambda choice: choice.get("index", 0))
            prompt_tokens = (found.get("usage") or {}).get("prompt_tokens", 0)
            answers = [_completion(choice, chat, prompt_tokens) for choice in choices]
        except (AttributeError, KeyError, TypeError):
            raise CapacityError(f"{self.url} {_STRANGE}: {json.dumps(found)[:200]}") from None
        if len(answers) != params.n:
            raise RequestError(f"{self.url} gave {len(answers)} answers where n={params.n} were asked for.")
        return answers

    def _choose(self, wanted: str | None) -> str:
        found = self._call("/models", seconds=min(self._timeout, _LIST_SECONDS))
        try:
            served = [str(entry["id"]) for entry in found.get("data", [])]
        except (AttributeError, KeyError, TypeError):
            raise CapacityError(f"{self.url} {_STRANGE}: {json.dumps(found)[:200]}") from None
        if wanted is None and len(served) == 1:
            return served[0]
        if wanted is None or (served and wanted not in served):
            raise RequestError(f"{self.url} serves {', '.join(served) or 'no model'}; name one of them (model).")
        return wanted

    def _call(self, path: str, body: dict[str, Any] | None = None, seconds: float | None = None) -> Any:
        """One exchange of JSON, again after a pause where the endpoint is only busy."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        for attempt in range(_NUM_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=seconds or self._timeout) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                if error.code not in (429, 502, 503) or attempt == _NUM_TRIES - 1:
                    raise RequestError(f"{self.url} refused the request ({error.code}): {_reason(error)}") from None
            except (OSError, ValueError, http.client.HTTPException) as error:
                hopeless = isinstance(error, ValueError | TimeoutError)  # another try would wait as long again
                if attempt == _NUM_TRIES - 1 or hopeless:
                    raise CapacityError(f"{self.url} {_STRANGE}: {error}") from None
            time.sleep(_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _body(params: SamplingParams) -> dict[str, Any]:
    """The settings in OpenAI's words, and in vLLM's where OpenAI has none; what asks for nothing is left out."""
    default, body = SamplingParams(), {"temperature": params.temperature, "top_p": params.top_p}
    body |= {"max_tokens": params.max_tokens, "n": params.n}
    for name in ("top_k", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"):
        if getattr(params, name) != getattr(default, name):
            body[name] = getattr(params, name)
    if params.stop:
        body["stop"] = list(params.stop)
    if params.logit_bias:
        body["logit_bias"] = {str(token): value for token, value in params.logit_bias.items()}
    if params.json_schema is not None:
        form = {"name": "answer", "schema": dict(params.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    for name in ("regex", "grammar", "choice"):
        if getattr(params, name):
            value = getattr(params, name)
            body["structured_outputs"] = {name: list(value) if name == "choice" else value}
    return body


def _completion(choice: dict[str, Any], chat: bool, prompt_tokens: int) -> Completion:
    text = (choice.get("message") or {}).get("content") or "" if chat else choice.get("text") or ""
    reported = choice.get("logprobs") or {}
    logprobs = None
    if chat and reported.get("content") is not None:
        logprobs = [TokenLogprob(-1, entry["logprob"]) for entry in reported["content"]]
    elif not chat and reported.get("token_logprobs") is not None:
        logprobs = [TokenLogprob(-1, value) for value in reported["token_logprobs"]]
    return Completion(text, [], choice.get("finish_reason") or "stop", logprobs, prompt_tokens)


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        found = json.loads(error.read())
        return (found.get("error") or {}).get("message") or str(found)[:300]
    except (ValueError, AttributeError, OSError):
        return str(error.reason)
