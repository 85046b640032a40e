"""The model that looks at a prompt and says how long its answer will be, and so when it is served."""
