"""Starting, watching and stopping a real Triton Inference Server on a generated repository."""
