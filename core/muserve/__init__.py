"""What the muServe parts share: errors, the plan contract, GPU devices and their physics."""

__version__ = "0.1.0"
