"""Which groups of documents are kept out of training: one rule for packing, questions and evaluation."""

from hashlib import blake2b


def is_held_out(group: str, share: float) -> bool:
    """Whether a group (a module, a page, a repository) belongs to the held-out `share` (0 to 1) of all groups.

    Decided by a hash of the name alone, so that every stage agrees without a list passing between them, and a larger
    share always contains a smaller one. The empty group, which says nothing, is never held out.
    """
    digest = blake2b(group.encode(), digest_size=8).digest()
    return bool(group) and int.from_bytes(digest) < share * 2**64
