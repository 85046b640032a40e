"""As many instances as the engine takes requests at once; Triton's native priority queue feeds them."""
