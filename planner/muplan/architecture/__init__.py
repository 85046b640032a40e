"""Networks built from Hugging Face configs: what a config says, and the weightless ONNX graphs for it."""
