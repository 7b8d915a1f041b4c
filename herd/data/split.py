"""Which groups of documents are held out from training: one rule for packing, questions and evaluation."""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b


def is_held_out(group: str, share: float) -> bool:
    """Whether a group (a module, a page, a repository) belongs to the held-out `share` (0 to 1) of all groups.

    Decided by a hash of the name alone, so that every stage agrees without a list passing between them, and a larger
    share always contains a smaller one. The empty group, which says nothing, is never held out.
    """
    digest = blake2b(group.encode(), digest_size=8).digest()
    return bool(group) and int.from_bytes(digest) < share * 2**64


def kept_aside(groups: Sequence[str], num_rows: float, salt: str) -> list[bool]:
    """For each row, given its group, whether it is held out: about `num_rows` of them, whole groups by their hash.

    Unlike `is_held_out` it counts, as few rows would otherwise give none or all by chance; of several groups at least
    one is kept aside and at least one is not.
    """
    sizes, held = Counter(groups), 0
    aside: set[str] = set()
    order = sorted(sizes, key=lambda group: blake2b(f"{salt} {group}".encode(errors="replace"), digest_size=8).digest())
    for group in order[:-1] if num_rows > 0 else ():
        if aside and held + sizes[group] / 2 > num_rows:
            break
        aside.add(group)
        held += sizes[group]
    return [group in aside for group in groups]
