"""Where a model comes from: mmdetection, Hugging Face, or an ONNX file."""
