"""One training loop for every objective.

`objectives` what a batch costs · `trainer` the loop · `optimizer` AdamW over flat float32 masters · `schedule` learning
rate and batch ramp · `checkpoint` the state that makes a resumed run the same run · `metrics` rates and sums ·
`average` Polyak average of checkpoints · `reference` log-probabilities for DPO.
"""
