"""One model over many processes, by `torch.distributed` alone.

`settings` what is asked for · `layout` which rank does what, in pure arithmetic · `mesh` the process groups · `tensor`
which weights are split, and the collectives around them · `loss` cross entropy over a split vocabulary · `context`
sequences cut in balanced chunks · `schedule` and `pipeline` the order of micro-batches, run by PyTorch's own pipeline
runtime · `model` a rank's part of the one model file · `chunk` how a rank's shard is saved under its whole name.
"""
