"""Motions written as HumanML3D stores them."""

from pathlib import Path

import numpy as np

WHOLE = "a person walks#a/DET#0.0#0.0\n"


def write_motion(root: Path, name: str, frames: int = 60, texts: str = WHOLE, joints: np.ndarray | None = None) -> None:
    """A body that sways, different for each name."""
    for folder in ("new_joints", "texts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if joints is None:
        body = np.random.default_rng(sum(map(ord, name))).uniform(-0.4, 0.4, (22, 3)) + (0, 1, 0)
        joints = body + 0.1 * np.sin(np.arange(frames) / 5)[:, None, None]
    np.save(root / "new_joints" / f"{name}.npy", joints.astype(np.float32) if joints.dtype.kind == "f" else joints)
    (root / "texts" / f"{name}.txt").write_text(texts, encoding="utf-8")
