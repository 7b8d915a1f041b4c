"""The models that a server offers, by the names that clients give."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from herd import __version__
from herd.errors import ConfigError
from herd.infer.embedder import Embedder
from herd.infer.engine import Engine
from herd.serve.errors import ApiError


class Model:
    """One model that is served: an engine's own, or it with one of its LoRA adapters."""

    def __init__(self, name: str, engine: Engine, base: Model | None = None) -> None:
        self.name, self.engine, self.base = name, engine, base
        self.created = int(time.time())

    @property
    def adapter(self) -> str | None:
        """The engine's name of the adapter; None for the model itself."""
        return None if self.base is None else self.name

    @functools.cached_property
    def embedder(self) -> Embedder:
        """What turns texts into vectors; shares the engine's weights."""
        return Embedder(self.engine)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A name for what computes the answers: version, weights (by their last norm), settings of the engine."""
        norm = self.engine.model.model.norm.weight.detach().float().cpu().numpy().tobytes()
        facts = (
            __version__,
            self.name,
            str(self.engine.model.config),
            str(self.engine.model),
            self.engine.deterministic,
        )
        return "fp_" + hashlib.sha256(repr(facts).encode() + norm).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """OpenAI's model object, with what a client of ours wants to know beside."""
        facts: dict[str, Any] = dict.fromkeys(("max_context", "max_model_len"), self.engine.max_context)
        facts["chat"] = self.engine.speaks_chat
        parent = {"parent": None if self.base is None else self.base.name}
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "herd"} | facts | parent


class Models:
    """All models that are served, with the adapters that their engines know; the first answers where none is named.

    Raises:
        ConfigError: two of them have one name.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._models = {name: Model(name, engine) for name, engine in engines.items()}
        for base in list(self._models.values()):
            for adapter in base.engine.adapters:
                if adapter in self._models:
                    raise ConfigError(f"an adapter and another model are both called {adapter}; give it another name")
                self._models[adapter] = Model(adapter, base.engine, base)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def bases(self) -> list[Model]:
        """The models themselves, without those that are one of them with an adapter."""
        return [model for model in self if model.base is None]

    def find(self, name: str | None) -> Model:
        """A model by its name.

        Raises:
            ApiError: 404, naming the models there are.
        """
        if name is None:
            return next(iter(self))
        if name not in self._models:
            there = ", ".join(f"`{known}`" for known in self._models)
            message = f"There is no model `{name}` here; there is {there}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return self._models[name]

    def find_chat(self, name: str | None) -> Model:
        """A model that was trained on conversations.

        Raises:
            ApiError: 404, or 400 where it was not.
        """
        model = self.find(name)
        if not model.engine.speaks_chat:
            message = f"`{model.name}` is a base model, never trained on conversations; use /v1/completions."
            raise ApiError(400, message, code="no_chat")
        return model
