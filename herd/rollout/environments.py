"""Task sets of the `verifiers` package (extra `verifiers`) as prompts and a reward: `reward=verifiers:NAME`.

A task gives its prompt, and its own reward functions judge the conversation. What needs a container, a tool server or a
running program of the task's is refused by name: here the model only answers.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from herd.errors import ConfigError, DataError
from herd.rollout.sample import Sample
from herd.types import Message

PREFIX = "verifiers:"
_TASK = "verifiers_task"  # a row's column


class Environment:
    """An installed task set; `rows(limit)` are its prompts and `reward` judges the answers to them.

    Raises:
        ConfigError: the package or the task set is not installed, or its tasks need more than answers.
    """

    def __init__(self, name: str):
        self.name = name.removeprefix(PREFIX)
        try:
            self._package: Any = importlib.import_module("verifiers.v1")
            loaders: Any = importlib.import_module("verifiers.v1.utils.loaders")
        except ImportError as error:
            raise ConfigError(f"reward={name}: needs `verifiers` ({error}): pip install '.[verifiers]'") from None
        try:
            self._tasks: Any = loaders.load_taskset(self._package.TasksetConfig(id=self.name))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"reward={name}: no task set of this name can be opened ({error})") from None
        self._known: dict[int, Any] = {}

    def rows(self, limit: int) -> list[dict[str, Any]]:
        """At most `limit` rows, the first ones: `messages`, and which task each is.

        Raises:
            ConfigError: a task needs a container or tools.
            DataError: a task has no prompt of text.
        """
        found = []
        for number, task in enumerate(itertools.islice(self._tasks, limit)):
            if task.NEEDS_CONTAINER or type(task).toolsets(task.config):
                raise ConfigError(
                    f"{PREFIX}{self.name}: its tasks need a container or tools, which are not offered here"
                )
            self._known[number] = task
            found.append({"messages": _prompt(task, f"{PREFIX}{self.name}, task {number}"), _TASK: number})
        if not found:
            raise DataError(f"{PREFIX}{self.name}: has no tasks")
        return found

    def reward(self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample]) -> list[float]:
        """The weighted sum of each task's rewards, which must lie from 0 to 1.

        Raises:
            DataError: it does not, or a reward failed.
        """
        return [self._judged(self._known[row[_TASK]], sample) for row, sample in zip(rows, samples, strict=True)]

    def _judged(self, task: Any, sample: Sample) -> float:
        package = self._package
        trace = package.Trace(
            task=package.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            agent=package.AgentInfo(config=package.AgentConfig()),
            nodes=list(self._nodes(sample)),
            is_completed=True,
            ok=True,
        )
        try:
            asyncio.run(task.score(trace))
        except Exception as error:
            raise DataError(f"{PREFIX}{self.name}: its reward failed ({type(error).__name__}: {error})") from error
        if not trace.rewards or not 0 <= trace.reward <= 1:
            raise DataError(
                f"{PREFIX}{self.name}: gave the rewards {trace.rewards}; expected at least one, and a sum from 0 to 1"
            )
        return float(trace.reward)

    def _nodes(self, sample: Sample) -> Any:
        kinds = {"system": "SystemMessage", "user": "UserMessage", "assistant": "AssistantMessage"}
        own = len(sample.messages) - 2 * sample.turns + 1  # from here on every other message is the model's
        for place, message in enumerate(sample.messages):
            kind = getattr(self._package, kinds[message["role"]])
            sampled = place >= own and message["role"] == "assistant"
            parent = place - 1 if place else None
            yield self._package.MessageNode(parent=parent, message=kind(content=message["content"]), sampled=sampled)


def _prompt(task: Any, where: str) -> list[Message]:
    data = task.data
    given = [("user", data.prompt)] if isinstance(data.prompt, str) else []
    given = given or [(one.role, one.content) for one in data.prompt or ()]
    given = [("system", data.system_prompt), *given] if data.system_prompt else given
    if not given or not all(isinstance(content, str) for _, content in given):
        raise DataError(f"{where}: expected a prompt of text; tasks that open with something else are not read")
    return [Message(role=role, content=content) for role, content in given]
