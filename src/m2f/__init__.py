"""m2f: what a Mask2Former's logits mean, without Triton and without torch.

Data flows one way: bytes -> preprocess -> engine -> postprocess -> result.
"""

__version__ = "0.1.0"
