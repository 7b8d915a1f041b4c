"""One model over many processes, with `torch.distributed` only.

`settings` the sizes of the dimensions · `layout` which rank does what, as pure arithmetic · `mesh` the process groups ·
`tensor` which weights are split, and the collectives around them · `loss` cross entropy over a split vocabulary ·
`context` sequences split into balanced chunks · `schedule` and `pipeline` the order of micro-batches, run by PyTorch's
pipeline runtime · `model` a rank's part of the model · `chunk` how a rank's shard is saved under its full name.
"""
