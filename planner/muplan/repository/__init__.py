"""From a plan to the files of a Triton model repository, and from there to a directory on disk."""
