"""The documents behind the presets, each as one plain float64 training loop.

Every module is written from its document's own text, in the document's names, layouts and order of updates, with
nothing from fastgan: gradients by `torch.autograd.grad`, everything else as the formula. `train` takes a dictionary of
variables, changes it in place and returns it; running statistics in it follow `nn.BatchNorm2d`'s convention.
"""
