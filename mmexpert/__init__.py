"""Contrastive learning between a signal and text: one training loop, parts chosen by Hydra. `load(run)` opens a trained model."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Resolves `load` on first use: importing the package must not import torch."""
    if name == "load":
        from mmexpert.loading import load  # not load.py: a submodule of that name would hide the function

        return load
    raise AttributeError(f"module 'mmexpert' has no attribute {name!r}")
