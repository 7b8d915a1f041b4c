"""The best of what a model could say: by a vote among answers, or by a tree of steps that a reward model looks at.

    self_consistent(answers)                        the answer that most samples agree on
    tree_search(engine, prompts, rewards.score)     step by step, where the score of a beginning says that it pays

Source: Wang et al. 2022 (self-consistency); The Llama 3 Herd of Models, section 4.3.3 (Monte Carlo tree search with
step-wise rewards); Kocsis and Szepesvari 2006 (UCT).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from herd.evals.answers import words_of
from herd.evals.mathematics import final_answer, plain
from herd.evals.scorers import last_number_of
from herd.infer.engine import Engine
from herd.infer.request import Request
from herd.log import progress
from herd.types import Conversation, Message, SamplingParams

Score = Callable[[Sequence[Conversation]], list[float]]
"""Of conversations whose last answer may only have begun: how good that is, larger is better (`RewardModel.score`)."""


def _by_number(answer: str) -> str:
    found = last_number_of(answer)
    return "" if found is None else f"{found:g}"


VOTES: Mapping[str, Callable[[str], str]] = {
    "number": _by_number,
    "mathematics": lambda answer: plain(final_answer(answer)),
    "words": lambda answer: " ".join(words_of(answer)),
}
"""What makes two answers one: their last number, their final expression, or their words."""


@dataclass(frozen=True)
class Found:
    """The answer that was chosen; `worth` is the share of the votes, or the reward of the whole answer."""

    text: str
    worth: float
    num_answers: int  # whole answers that it was chosen from


def self_consistent(answers: Sequence[str], *, by: str = "number") -> Found:
    """The answer that most agree on, in its shortest form; those that say nothing to agree on have no vote.

    Of equal votes the first wins. Without any vote the text is empty.
    """
    votes: dict[str, list[str]] = {}
    for answer in answers:
        if key := VOTES[by](answer):
            votes.setdefault(key, []).append(answer)
    if not votes:
        return Found("", 0.0, len(answers))
    chosen = max(votes.values(), key=len)  # the first of the largest: dictionaries keep their order
    return Found(min(chosen, key=len), len(chosen) / len(answers), len(answers))


@dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """How a tree grows."""

    expansions: int = 12  # beginnings that are gone on with
    width: int = 4  # next steps drawn of each
    step_end: str = "\n"  # what ends a step
    step_tokens: int = 96  # longest step
    answer_tokens: int = 384  # longest answer
    temperature: float = 0.8
    curiosity: float = 1.0  # weight of what has been looked at little, beside values scaled to 0 to 1
    seed: int = 0


@dataclass(eq=False)
class Node:
    """A beginning of an answer."""

    text: str
    whole: bool
    value: float
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0

    def mean(self) -> float:
        """What has come of it so far."""
        return self.total / self.visits if self.visits else self.value


class Tree:
    """One prompt's tree."""

    def __init__(self, messages: Conversation, prompt: list[int]):
        self.messages, self.prompt = messages, prompt
        self.root = Node("", False, 0.0)
        self.low, self.high = math.inf, -math.inf
        self.whole: list[Node] = []

    def leaf(self, curiosity: float) -> Node | None:
        """The beginning to go on with: down the tree, always to the child of the highest bound; None if all ended."""
        node = self.root
        while node.children:
            open_ones = [child for child in node.children if not _is_over(child)]
            if not open_ones:
                return None
            node = max(open_ones, key=lambda child: self._bound(child, curiosity))
        return node

    def _bound(self, node: Node, curiosity: float) -> float:
        assert node.parent is not None
        spread = self.high - self.low
        scaled = (node.mean() - self.low) / spread if spread > 0 else 0.5
        return scaled + curiosity * math.sqrt(math.log(max(node.parent.visits, 1) + 1) / (node.visits + 1))

    def grow(self, node: Node, steps: Sequence[tuple[str, bool, float]]) -> None:
        """Hang next steps (whole text, whether it ended, value) under a node, and tell all above it."""
        for text, whole, value in dict.fromkeys(steps):
            child = Node(text, whole, value, node)
            node.children.append(child)
            self.low, self.high = min(self.low, value), max(self.high, value)
            if whole:
                self.whole.append(child)
        best = max(child.value for child in node.children)
        above: Node | None = node
        while above is not None:
            above.visits += 1
            above.total += best
            above = above.parent

    def talk(self, text: str) -> Conversation:
        """The conversation with an answer that has begun so."""
        return [*self.messages, Message(role="assistant", content=text.strip())]

    def beginning(self) -> Node:
        """The most promising beginning."""
        return max(_leaves(self.root), key=lambda node: node.value)

    def best(self) -> Found:
        """The whole answer of the highest value; where none has ended, the most promising beginning."""
        candidates = self.whole or _leaves(self.root)
        chosen = max(candidates, key=lambda node: node.value)
        return Found(chosen.text.strip(), chosen.value, len(self.whole))


def tree_search(
    engine: Engine, prompts: Sequence[Conversation], score: Score, options: TreeOptions | None = None
) -> list[Found]:
    """For each prompt the best answer that a search over its steps has found; all trees grow together.

    A beginning is gone on with where its score, or that of what came from it, is high, or where little has been looked
    at. `score` sees the conversation with the answer so far; it should have learned to judge steps.

    Raises:
        RequestError: a prompt is too long.
    """
    options = options or TreeOptions()
    trees = [Tree(messages, engine.encode(messages)) for messages in prompts]
    with progress("search", total=options.expansions * len(trees), unit="steps") as bar:
        for turn in range(options.expansions):
            growing = [(tree, node) for tree in trees if (node := tree.leaf(options.curiosity)) is not None]
            drawn = next_steps(engine, [(tree.prompt, node.text) for tree, node in growing], options, turn)
            talks = [tree.talk(text) for (tree, _), steps in zip(growing, drawn) for text, _ in steps]
            values = iter(score(talks) if talks else [])
            for (tree, node), steps in zip(growing, drawn, strict=True):
                tree.grow(node, [(text, whole, next(values)) for text, whole in steps])
            bar.advance(len(trees))
    _end_the_open(engine, [tree for tree in trees if not tree.whole], score, options)
    return [tree.best() for tree in trees]


def _end_the_open(engine: Engine, trees: Sequence[Tree], score: Score, options: TreeOptions) -> None:
    """Where no answer has ended, the most promising beginning is ended: everything was not drawn for nothing."""
    nodes = [tree.beginning() for tree in trees]
    begun = [(tree.prompt, node.text) for tree, node in zip(trees, nodes)]
    texts = [one for (one,) in endings(engine, begun, options, 1, options.expansions)]
    values = score([tree.talk(text) for tree, text in zip(trees, texts)]) if texts else []
    for tree, node, text, value in zip(trees, nodes, texts, values, strict=True):
        tree.grow(node, [(text, True, value)])


def next_steps(
    engine: Engine, begun: Sequence[tuple[list[int], str]], options: TreeOptions, turn: int
) -> list[list[tuple[str, bool]]]:
    """`width` next steps of each beginning (prompt tokens, answer so far): the answer with the step, and whether it is
    whole. `turn` makes each drawing another one.
    """
    requests = _done(engine, step_requests(engine, begun, options, turn))
    return [steps_in(engine, one, request, options) for one, request in zip(begun, requests, strict=True)]


def step_requests(
    engine: Engine,
    begun: Sequence[tuple[list[int], str]],
    options: TreeOptions,
    turn: int,
    owner: str | None = None,
    adapter: str | None = None,
) -> list[Request]:
    """What draws the next steps, to be run by whoever drives the engine."""
    requests = []
    for number, (prompt, text) in enumerate(begun):
        params = SamplingParams(
            temperature=options.temperature,
            top_p=1.0,
            max_tokens=options.step_tokens,
            n=options.width,
            seed=(options.seed * 1_000_003 + turn) * 10_007 + number,
            stop=(options.step_end,),
            adapter=adapter,
        )
        requests.append(engine.request([*prompt, *_encoded(engine, text)], params, owner=owner))
    return requests


def steps_in(
    engine: Engine, begun: tuple[list[int], str], request: Request, options: TreeOptions
) -> list[tuple[str, bool]]:
    """The steps that a request has drawn: the answer with each, and whether it is whole."""
    (prompt, text), steps = begun, []
    for answer in request.answers:
        ended = bool(answer.tokens) and answer.tokens[-1] in engine.stop_ids
        longer = text + engine.text_of(answer)
        long = len(request.prompt) - len(prompt) + len(answer.tokens) >= options.answer_tokens
        at_end = len(answer.tokens) < options.step_tokens  # else the step was too long, and goes on
        steps.append((longer, True) if ended or long else (longer + options.step_end * at_end, False))
    return steps


def endings(
    engine: Engine, begun: Sequence[tuple[list[int], str]], options: TreeOptions, count: int, turn: int
) -> list[list[str]]:
    """`count` whole answers from each beginning (prompt tokens, answer so far)."""
    requests = []
    for number, (prompt, text) in enumerate(begun):
        so_far = _encoded(engine, text)
        params = SamplingParams(
            temperature=options.temperature,
            top_p=1.0,
            max_tokens=max(options.answer_tokens - len(so_far), 1),
            n=count,
            seed=(options.seed * 1_000_003 + turn) * 10_007 + number,
        )
        requests.append(engine.request([*prompt, *so_far], params))
    done = zip(begun, _done(engine, requests), strict=True)
    return [[text + engine.text_of(answer) for answer in request.answers] for (_, text), request in done]


def _encoded(engine: Engine, text: str) -> list[int]:
    return engine.tokenizer.encode(text) if text else []


def _done(engine: Engine, requests: list[Request]) -> list[Request]:
    for request in requests:
        engine.submit(request)
    while not all(request.finished for request in requests):
        engine.step()
    for request in requests:
        request.raise_error()
    return requests


def _is_over(node: Node) -> bool:
    """Whether nothing below it can be gone on with."""
    return node.whole or (bool(node.children) and all(_is_over(child) for child in node.children))


def _leaves(node: Node) -> list[Node]:
    return [leaf for child in node.children for leaf in _leaves(child)] if node.children else [node]
