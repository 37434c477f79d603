"""The test vector of composed retrieval: features made of noise(s, D) and r(s) for the real val annotations, D = 48."""

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
D = 48


def noise(text: str, size: int = D) -> np.ndarray:
    """SHAKE-256 bytes of the text as little-endian uint32 w, value w / 2^31 - 1, fp64."""
    return np.frombuffer(hashlib.shake_256(text.encode()).digest(4 * size), "<u4") / 2.0**31 - 1


def r(text: str) -> float:
    """0.5 + (first byte of SHA-256("scale:" + s)) / 256."""
    return 0.5 + hashlib.sha256(f"scale:{text}".encode()).digest()[0] / 256


@lru_cache(maxsize=200_000)
def picture(name: str) -> np.ndarray:
    return noise(f"image:{name}")


def gallery_features(names) -> torch.Tensor:
    return torch.from_numpy(np.stack([r(name) * picture(name) for name in names])).float()


def text_features(queries) -> torch.Tensor:
    rows = [0.5 * picture(q.target) - 0.25 * picture(q.reference) + noise(f"text:{q.text}") for q in queries]
    return torch.from_numpy(np.stack(rows)).float()
