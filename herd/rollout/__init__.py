"""What a model writes so that something can be made of it: sampled, judged, searched through, learned from.

`sample` groups of answers with their log-probabilities, over several turns where an environment replies · `rewards`
functions that judge them · `advantages` what each answer is worth beside its group, and what keeps a reward honest ·
`rows` answers as batches · `source` all of that as batches made while the training goes on · `watch` catches rewards
that are gamed · `search` the best of many answers or steps · `environments` of the `verifiers` package
"""
