"""Any OpenAI-compatible endpoint (vLLM, SGLang, another Herd server) in place of an engine.

    engine = RemoteEngine("http://gpu-box:8000/v1")
    engine.generate([{"role": "user", "content": "Hello"}], herd.SamplingParams(n=8))

The requested parameters are first tried on one token: an endpoint that does not support one of them is refused at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from herd.endpoint import Choice, Endpoint, Patience
from herd.errors import RequestError
from herd.infer.request import check_params
from herd.types import Completion, Conversation, SamplingParams, TokenLogprob

_NOT_OFFERED = ("prompt_logprobs", "adapter", "best_of")  # endpoints serve an adapter as another model


class RemoteEngine:
    """Samples from an endpoint, given by its address or as an `Endpoint` (see `herd.endpoint`).

    `model` may be left out if the endpoint serves only one. `key` is sent as a bearer token.

    Raises:
        CapacityError: the endpoint cannot be reached.
        RequestError: it serves several models and none was named, or it does not serve the named one.
    """

    def __init__(
        self, url: str | Endpoint, *, model: str | None = None, key: str | None = None, timeout_seconds: float = 600
    ) -> None:
        patience = Patience(seconds=timeout_seconds)
        self.endpoint = url if isinstance(url, Endpoint) else Endpoint(url, key=key, patience=patience)
        self.url = self.endpoint.url
        self.model = self._choose(model)
        self._tried: set[str] = set()

    def generate(
        self, inputs: str | Conversation | Sequence[str | Conversation], params: SamplingParams | None = None
    ) -> Any:
        """As `Engine.generate`: one answer, or a list if `n` > 1; for a list of inputs a list of these.

        Token ids are not known: `Completion.tokens` is empty.

        Raises:
            RequestError: the endpoint does not support a parameter, or refused a request.
            CapacityError: it does not answer.
        """
        params = params or SamplingParams()
        check_params(params)
        single = isinstance(inputs, str) or (bool(inputs) and all(isinstance(item, dict) for item in inputs))
        batch: list[Any] = [inputs] if single else list(inputs)
        if batch:
            self.check(batch[0], params)
        answers = list(self.endpoint.each(lambda item: self._ask(item, params), batch))
        shaped = [group[0] if params.n == 1 else group for group in answers]
        return shaped[0] if single else shaped

    def check(self, example: str | Conversation, params: SamplingParams) -> None:
        """Try the parameters on one token of one input; once for each set of fields.

        Raises:
            RequestError: naming the parameter that the endpoint does not support.
        """
        lacking = [name for name in _NOT_OFFERED if getattr(params, name) is not None]
        if lacking:
            raise RequestError(f"{self.url}: endpoints do not support {', '.join(lacking)}; use a local engine.")
        fields = json.dumps(sorted(_body(params)))
        if fields in self._tried:
            return
        answers = self._ask(example, replace(params, max_tokens=1, min_tokens=0))
        if params.logprobs is not None and any(answer.logprobs is None for answer in answers):
            raise RequestError(f"{self.url} returned no logprobs, which are needed here.")
        if params.seed is not None and params.temperature > 0 and self._is_random(example, params):
            raise RequestError(f"{self.url} does not honour seed: the same request gave two different answers.")
        self._tried.add(fields)

    def _is_random(self, example: str | Conversation, params: SamplingParams) -> bool:
        few = replace(params, max_tokens=8, min_tokens=0, n=1, logprobs=None)
        first, second = (self._ask(example, few)[0].text for _ in range(2))
        return first != second

    def _ask(self, item: str | Conversation, params: SamplingParams) -> list[Completion]:
        response = self.endpoint.complete(item, model=self.model, logprobs=params.logprobs, **_body(params))
        if len(response.choices) != params.n:
            raise RequestError(f"{self.url} returned {len(response.choices)} answers instead of n={params.n}.")
        return [_completion(choice, response.prompt_tokens) for choice in response.choices]

    def _choose(self, model: str | None) -> str:
        served = [entry["id"] for entry in self.endpoint.models()]
        if model is None and len(served) == 1:
            return served[0]
        if model is None or (served and model not in served):
            raise RequestError(f"{self.url} serves {', '.join(served) or 'no model'}; name one of them (model).")
        return model


def _body(params: SamplingParams) -> dict[str, Any]:
    """The parameters as fields of OpenAI's API, or of vLLM's where OpenAI has none; defaults are left out."""
    default, body = SamplingParams(), dict[str, Any](temperature=params.temperature, top_p=params.top_p)
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


def _completion(choice: Choice, prompt_tokens: int) -> Completion:
    scores = [token.logprob for token in choice.tokens or ()]
    known = [TokenLogprob(-1, score) for score in scores if score is not None]
    is_complete = choice.tokens is not None and len(known) == len(scores)
    return Completion(choice.text, [], choice.finish_reason or "stop", known if is_complete else None, prompt_tokens)
