"""What answering needs of the server, and a turn made ready: with its tools, its files and its passages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from herd.errors import DataError, RequestError
from herd.infer.engine import Engine
from herd.infer.request import Request as EngineRequest
from herd.knowledge.grounding import Found, Library
from herd.serve.attachments import with_files
from herd.serve.effort import Effort
from herd.serve.errors import ApiError
from herd.serve.files import FileStore
from herd.serve.limits import Admission, Limits
from herd.serve.models import Model
from herd.serve.prompts import encode, longest
from herd.serve.rounds import own_names, with_documents, with_own_tools
from herd.serve.thinker import first_bound
from herd.serve.trials import Trials
from herd.serve.turn import Budget, Guard, Tool, Turn
from herd.serve.worker import PieceRelay, Worker
from herd.tokenizer.toolcalls import CODE_INTERPRETER


@dataclass(frozen=True)
class Services:
    """The parts of the server that answering a request needs."""

    worker: Worker
    limits: Limits
    admission: Admission
    trials: Trials
    keep_text: bool = False  # in the records
    guards: Sequence[Guard] = ()
    tools: Mapping[str, Tool] = field(default_factory=dict)  # the server's own, by name
    budget: Budget = field(default_factory=Budget)
    files: FileStore = field(default_factory=FileStore)
    library: Library | None = None
    from_library: bool = False  # answer from it where a request does not say
    effort: Effort | None = None

    async def with_what_it_needs(self, turn: Turn, engine: Engine) -> tuple[Turn, Found | None]:
        """The turn with its files and the passages of the documents, and these.

        Raises:
            ApiError: files or documents that are not there.
            Refused: a guard lets one not through.
        """
        python = CODE_INTERPRETER in own_names(turn, self.tools)
        turn = await with_files(turn, self.files, self.guards, owner=turn.owner, python=python)
        return await with_documents(turn, self.library, self.guards, engine, default=self.from_library)

    async def count(self, turn: Turn, engine: Engine, owner: str | None) -> int:
        """The tokens of a turn's prompt, as it would be answered.

        Raises:
            ApiError: what it asks for is not there.
            DataError: it cannot be told to the model.
            Refused: a guard lets it not through.
        """
        turn, _ = await self.with_what_it_needs(replace(with_own_tools(turn, self.tools), owner=owner), engine)
        return len(await asyncio.to_thread(encode, engine, turn, turn.inputs[0], builtin=own_names(turn, self.tools)))

    def requests(
        self, model: Model, field_of: Callable[[str], str], turn: Turn, relay: PieceRelay, owner: str | None
    ) -> list[EngineRequest]:
        """Encode and check every prompt of a turn before any of them runs.

        Raises:
            ApiError: 400, one does not fit; `field_of` says which field a refusal is about.
        """
        engine, requests = model.engine, []
        owner = None if self.limits.share_prefixes else owner
        for number, item in enumerate(turn.inputs):
            try:
                prompt = encode(engine, turn, item, builtin=own_names(turn, self.tools))
                most = first_bound(engine, turn, longest(engine, self.limits, len(prompt), turn))
                params = replace(turn.params, max_tokens=most, adapter=model.adapter)
                requests.append(engine.request(prompt, params, relay.listener(number * params.n), owner=owner))
            except (RequestError, DataError) as error:
                code = "context_length_exceeded" if "context" in str(error) else None
                raise ApiError(400, str(error), param=field_of(str(error)), code=code) from None
        return requests
