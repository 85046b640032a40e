"""GPU devices behind one protocol: real ones through NVML, virtual ones from published physics."""
