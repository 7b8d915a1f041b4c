"""One trainer for every objective.

`objectives` what a batch costs · `trainer` a step, and the loop on top · `sources` where batches come from · `hooks`
extras at intervals · `saving` what is kept of a run · `optimizer` AdamW over flat float32 masters · `schedule` learning
rate and batch ramp · `checkpoint` the state that makes a resumed run the same run · `metrics` rates and sums ·
`average` Polyak average of checkpoints · `reference` log-probabilities for DPO · `teacher` those for distillation ·
`settings` and `job` what every stage that trains has in common.
"""
