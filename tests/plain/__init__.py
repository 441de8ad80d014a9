"""The documents behind the presets, each as a plain float64 training loop.

Every module follows the text of its document, with its names, layouts and order of updates, and imports nothing from
fastgan: gradients are computed by `torch.autograd.grad`, everything else by formulas. `train` modifies a dictionary of
variables in place and returns it; running statistics follow the convention of `nn.BatchNorm2d`.
"""
