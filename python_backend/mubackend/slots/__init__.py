"""As many instances as the engine takes requests at once; Triton's native priority queue gives out turns."""
