"""Who holds which block of the cache: reference counts, and prefixes shared by content.

A block is in one of three states: in use (one or more sequences hold it), kept (nobody holds it, but its content is
known and may serve again) or free. Kept blocks count as free: the one unused for longest gives way first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

ROOT = 0
"""The content id of the empty prefix."""


class BlockAllocator:
    """Hands out the blocks of a pool.

    A full block's content is known by the tokens in it and the content before it, compared exactly, never by a hash
    alone. Ids of contents are never used twice, so a forgotten prefix cannot be mistaken for a newer one.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: memory that was touched is used again first
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

        The scheduler admits only what fits, so an empty pool is a fault of ours, not of a user.
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
        """One holder fewer of each block of a sequence; its last blocks are the first to be reused."""
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
        """Make a full block findable by its tokens and the content before it; the id of the content up to its end.

        Where another block already has that content, this one stays private and the id is the other's.
        """
        key = (before, _packed(tokens))
        if key in self._contents:
            return self._contents[key][0]
        self._newest_content += 1
        self._contents[key] = self._newest_content, block
        self._key_of[block] = key
        return self._newest_content

    def match(self, tokens: Sequence[int], root: int = ROOT) -> tuple[list[int], int]:
        """The longest known prefix in whole blocks, shared to the caller, and its content id.

        At least the last token is left over: its logits are what the caller wants. Contents under different roots
        (negative ids) are never shared: an adapter's keys are not the model's own, nor one owner's another's.
        """
        blocks, content = [], root
        for start in range(0, len(tokens) - self.block_size, self.block_size):
            found = self._contents.get((content, _packed(tokens[start : start + self.block_size])))
            if found is None:
                break
            content, block = found
            self.share(block)
            blocks.append(block)
        return blocks, content

    def forget(self) -> None:
        """Drop every known content: the cache's tensors can no longer be trusted."""
        self._free += self._kept
        self._kept.clear()
        self._contents.clear()
        self._key_of.clear()


def _packed(tokens: Sequence[int]) -> bytes:
    """Tokens as 64-bit integers in a row: a sixth of a tuple's memory, and no part of a prompt is kept alive by it."""
    return array("q", tokens).tobytes()
