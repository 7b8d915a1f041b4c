"""From documents, conversations and preference pairs to packed micro-batches.

`split` which groups are held out · `shards` token shards on disk · `packing` pieces into full rows ·
`permutation` a shuffle that is computed, not stored · `mixture` whose turn it is · `loader` the batches of a step ·
`conversations` chats with their loss mask · `preferences` pairs for reward models and DPO.
"""
