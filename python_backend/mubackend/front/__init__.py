"""The model in front of an engine that is not ours: it gives each request Triton's native priority."""
