"""The engine behind a generative model: its own priority queue in front of continuous batching."""
