"""Control laws: pure functions from what was observed to the clock each GPU should have."""
