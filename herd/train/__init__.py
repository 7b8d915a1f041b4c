"""One trainer for every objective.

`objectives` loss functions · `trainer` a step, and the training loop · `sources` where batches come from · `hooks`
functions called at intervals · `saving` which checkpoints of a run are kept · `optimizer` AdamW over flat float32
masters · `schedule` learning rate and batch ramp · `checkpoint` the training state, for exact resumption · `metrics`
sums and speed · `average` Polyak average of checkpoints · `reference` log-probabilities for DPO · `teacher` those for
distillation · `settings` and `job` what all training stages share.
"""
