"""hatch-ray: distributed reinforcement learning for multi-image spatial reasoning (HATCH) on Ray."""

__version__ = "0.1.0"
