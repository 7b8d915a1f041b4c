"""The block allocator, whatever the order of arrivals and ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from herd.infer.blocks import ROOT, BlockAllocator

BLOCK_SIZE = 2
NUM_BLOCKS = 9


def register_all(allocator: BlockAllocator, blocks: list[int], tokens: list[int]) -> None:
    content = ROOT
    for n, block in enumerate(blocks[: len(tokens) // BLOCK_SIZE]):
        content = allocator.register(block, content, tokens[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE])


def test_a_known_prefix_is_found_in_whole_blocks_and_leaves_the_last_token():
    allocator = BlockAllocator(8, 2)
    blocks = [allocator.take() for _ in range(3)]
    register_all(allocator, blocks, [1, 2, 3, 4, 5, 6])
    assert allocator.match([1, 2, 3, 4, 9])[0] == blocks[:2]
    assert allocator.match([1, 2, 3, 4])[0] == blocks[:1]
    assert allocator.match([9, 2, 3, 4, 5])[0] == []


def test_the_same_tokens_after_another_beginning_are_not_shared():
    allocator = BlockAllocator(8, 2)
    blocks = [allocator.take() for _ in range(2)]
    register_all(allocator, blocks, [1, 2, 3, 4])
    other = allocator.take()
    register_all(allocator, [other], [7, 8])
    assert allocator.match([7, 8, 3, 4, 5])[0] == [other]


def test_a_released_prefix_is_kept_until_its_block_is_needed():
    allocator = BlockAllocator(2, 2)
    block = allocator.take()
    register_all(allocator, [block], [1, 2])
    allocator.release([block])
    assert allocator.num_free == 2
    assert allocator.match([1, 2, 3])[0] == [block]
    allocator.release([block])
    allocator.take(), allocator.take()
    assert allocator.match([1, 2, 3])[0] == []


def test_the_prefix_unused_for_longest_gives_way_and_its_end_before_its_beginning():
    allocator = BlockAllocator(3, 1)
    first = [allocator.take(), allocator.take()]
    content = allocator.register(first[0], ROOT, [1])
    allocator.register(first[1], content, [2])
    second = allocator.take()
    allocator.register(second, ROOT, [5])
    allocator.release(first)
    allocator.release([second])
    assert allocator.take() == first[1]
    assert allocator.take() == first[0]


class Sequences(RuleBasedStateMachine):
    """Sequences over a tiny alphabet arrive, grow, fork and leave; `held` is the plain model of who holds what."""

    @initialize()
    def begin(self):
        self.allocator = BlockAllocator(NUM_BLOCKS, BLOCK_SIZE)
        self.held: list[tuple[list[int], list[int]]] = []  # (tokens, blocks)
        self.written: dict[int, tuple[int, ...]] = {}  # block -> all tokens up to its end, as last written

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=7))
    def arrive(self, tokens):
        blocks, content = self.allocator.match(tokens)
        for n, block in enumerate(blocks):
            assert self.written[block] == tuple(tokens[: (n + 1) * BLOCK_SIZE])
        needed = -(-len(tokens) // BLOCK_SIZE) - len(blocks)
        if needed > self.allocator.num_free:
            self.allocator.release(blocks)
            return
        known = len(blocks)
        blocks += [self.allocator.take() for _ in range(needed)]
        for n in range(known, len(blocks)):
            self._write(blocks[n], tokens[: (n + 1) * BLOCK_SIZE])
        for n in range(known, len(tokens) // BLOCK_SIZE):
            content = self.allocator.register(blocks[n], content, tokens[n * BLOCK_SIZE : (n + 1) * BLOCK_SIZE])
        self.held.append((tokens, blocks))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data):
        _, blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.allocator.release(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fork(self, data):
        tokens, blocks = data.draw(st.sampled_from(self.held))
        full = len(tokens) // BLOCK_SIZE
        rest = len(tokens) % BLOCK_SIZE
        if rest and not self.allocator.num_free:
            return
        for block in blocks[:full]:
            self.allocator.share(block)
        copied = [self.allocator.take()] if rest else []
        for block in copied:
            self._write(block, tokens)
        self.held.append((tokens, blocks[:full] + copied))

    @rule()
    def forget(self):
        self.allocator.forget()

    def _write(self, block, tokens):
        holders = sum(block in blocks for _, blocks in self.held)
        assert holders == 0, "a block was handed out while somebody held it"
        self.written[block] = tuple(tokens)

    @invariant()
    def every_block_is_held_as_often_as_counted_and_none_is_lost(self):
        if not hasattr(self, "held"):
            return
        counts = [sum(blocks.count(block) for _, blocks in self.held) for block in range(NUM_BLOCKS)]
        assert counts == [self.allocator.num_holders(block) for block in range(NUM_BLOCKS)]
        assert self.allocator.num_free == counts.count(0)

    @invariant()
    def nobody_sees_another_sequences_tokens(self):
        for tokens, blocks in getattr(self, "held", []):
            for n, block in enumerate(blocks):
                assert self.written[block] == tuple(tokens[: (n + 1) * BLOCK_SIZE])


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
