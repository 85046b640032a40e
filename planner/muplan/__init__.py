"""The offline planner: from a spec of GPUs, models and SLOs to a Triton repository and a plan."""
