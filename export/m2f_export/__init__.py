"""Checkpoint -> ONNX -> a repository Triton can serve."""
