"""The models that a server offers, by the names that clients give."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

from herd.infer.embedder import Embedder
from herd.infer.engine import Engine
from herd.serve.errors import ApiError


class Model:
    """One model that is served."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self.engine, self.created = name, engine, int(time.time())

    @functools.cached_property
    def embedder(self) -> Embedder:
        """What turns texts into vectors; shares the engine's weights."""
        return Embedder(self.engine)

    def describe(self) -> dict[str, Any]:
        """OpenAI's model object, with what a client of ours wants to know beside."""
        facts = {"max_context": self.engine.max_context, "chat": self.engine.speaks_chat}
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "herd"} | facts


class Models:
    """All models that are served; the first one answers where a request names none."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._models = {name: Model(name, engine) for name, engine in engines.items()}

    def __iter__(self):
        return iter(self._models.values())

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
