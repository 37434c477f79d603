"""Radar clips written as their sources store them, for the tests of several data sets."""

import json

import numpy as np
from safetensors.numpy import save_file

from mmexpert.data.views import VIEW_ROWS

RECORD = """header: 
  seq: {seq}
  stamp: 
    secs: {secs}
    nsecs: 5
  frame_id: "ti_mmwave"
point_id: {point_id}
x: 0.1
y: 0.1
z: 0.1
range: {range}
velocity: {velocity}
doppler_bin: {doppler_bin}
bearing: {bearing}
intensity: {intensity}
---
"""
POINT = {"seq": 1, "secs": 1561686032, "range": 3.0, "velocity": 1.2, "doppler_bin": 10, "bearing": 30.0, "intensity": 25.0}


def session_text(frames: int, points: int = 10, **changes: object) -> list[str]:
    return [RECORD.format(**POINT | changes, point_id=k % points) for k in range(frames * points)]


def write_session(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else "".join(text), encoding="latin-1")
    return path


def views_of(seed, frames=40):
    rng = np.random.default_rng(seed)
    return {view: rng.uniform(0.1, 1, (rows, frames)).astype(np.float32) for view, rows in VIEW_ROWS.items()}


def write_views(folder, stem, views, layout):
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "npz":
        np.savez(folder / f"{stem}.npz", **views)
    elif layout == "safetensors":
        save_file(views, folder / f"{stem}.safetensors")
    for view, x in views.items():
        if layout == "folders":
            (folder / view).mkdir(exist_ok=True)
            np.save(folder / view / f"{stem}.npy", x)
        elif layout == "suffixes":
            np.save(folder / f"{stem}_{view}.npy", x)


def write_split(root, name, records):
    (root / name).write_text(json.dumps(records), encoding="utf-8")
