"""The core of m2f: turn images into an engine's input and its logits into instances, without Triton and torch.

Data flows one way: bytes -> preprocess -> engine -> postprocess -> result.
"""

__version__ = "0.1.0"
