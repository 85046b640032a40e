"""The model that runs one partition of a single-pass network."""
