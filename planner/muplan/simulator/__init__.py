"""Simulated serving: what a cluster, its models and their load do together, event by event."""
