"""What runs inside Triton's Python backend: length predictor, LLM engine and model stages."""
