"""OpenAI-compatible access to generative models, for a Triton that has no such front end of its own."""
