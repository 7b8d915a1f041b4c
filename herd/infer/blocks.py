"""The blocks of the KV cache: reference counts, and prefixes shared by content.

A block is in one of three states: in use (one or more sequences hold it), kept (no sequence holds it, but its content
is known and may be reused) or free. Kept blocks count as free; the least recently used one is overwritten first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

ROOT = 0
"""The content id of the empty prefix."""


class BlockAllocator:
    """Hands out the blocks of a pool.

    A full block is identified by its tokens and the content before it, compared exactly, never by a hash alone.
    Content ids are never reused, so a forgotten prefix cannot be mistaken for a newer one.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: memory already touched is reused first
        self._kept: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._contents: dict[tuple[int, bytes], tuple[int, int]] = {}  # (before, tokens) -> id, block
        self._key_of: dict[int, tuple[int, bytes]] = {}
        self._newest_content = ROOT

    @property
    def num_free(self) -> int:
        """Blocks that `take` can hand out."""
        return len(self._free) + len(self._kept)

    def take(self) -> int:
        """A free block for one holder; its old content is dropped.

        The scheduler admits only what fits, so an empty pool is a bug here, never the user's error.
        """
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._contents[self._key_of.pop(block)]
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder of a block that is in use or kept."""
        self._kept.pop(block, None)
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Remove one holder from each block of a sequence; its last blocks are reused first."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} released more often than held"
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._free.append(block)

    def num_holders(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._references[block]

    def register(self, block: int, before: int, tokens: Sequence[int]) -> int:
        """Make a full block findable by its tokens and the content before it; returns the content id up to its end.

        If another block already has that content, this one stays private and the other's id is returned.
        """
        key = (before, _packed(tokens))
        if key in self._contents:
            return self._contents[key][0]
        self._newest_content += 1
        self._contents[key] = self._newest_content, block
        self._key_of[block] = key
        return self._newest_content

    def match(self, tokens: Sequence[int], root: int = ROOT) -> tuple[list[int], int]:
        """The blocks of the longest known prefix, with the caller as one more holder, and its content id.

        The last token is never matched, because its logits are needed. Contents under different roots (negative ids)
        are never shared: adapters have other keys and values, and owners must not see each other's prompts.
        """
        blocks, content = [], root
        for start in range(0, len(tokens) - self.block_size, self.block_size):
            known = self._contents.get((content, _packed(tokens[start : start + self.block_size])))
            if known is None:
                break
            content, block = known
            self.share(block)
            blocks.append(block)
        return blocks, content

    def forget(self) -> None:
        """Drop all known contents, when the cache's tensors are no longer valid."""
        self._free += self._kept
        self._kept.clear()
        self._contents.clear()
        self._key_of.clear()


def _packed(tokens: Sequence[int]) -> bytes:
    """Tokens as 64-bit integers: a sixth of a tuple's memory, and it keeps no part of the prompt alive."""
    return array("q", tokens).tobytes()
