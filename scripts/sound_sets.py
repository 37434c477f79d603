"""Small sound data sets in every format that scripts/broken_files.py spoils and scripts/fuzz_readers.py writes into."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

VIEWS = {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}
TABLE, TEXTS = "metadata.csv", "class_texts.json"


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    """The bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


def write_radar(root: Path) -> None:
    """Six clips and three split files in source 1's format."""
    for number in range(6):
        for view, rows in VIEWS.items():
            folder = root / "clips" / view
            folder.mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng(number).random((rows, 40), np.float32)
            (folder / f"{number:06d}.npy").write_bytes(npy(values))
    records = [{"filefolder": "clips", "fileindex": f"{i:06d}", "captions": [f"caption {i}"], "classid": i % 2} for i in range(6)]
    for name, part in (("train", records[:4]), ("val", records[4:5]), ("test", records[5:])):
        (root / f"{name}.json").write_text(json.dumps(part))


def write_films(root: Path) -> None:
    """Eight films of four patients in two classes, a table and class texts."""
    lines = ["file,label,group"]
    for patient in range(4):
        for visit in range(2):
            label = ("fixed", "loose")[patient % 2]
            path = root / label / f"P{patient}_{visit}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(10 * patient + visit).integers(0, 256, (40, 36), np.uint8)
            Image.fromarray(pixels).save(path)
            lines.append(f"{label}/{path.name},{label},P{patient}")
    (root / TABLE).write_text("\n".join(lines) + "\n")
    (root / TEXTS).write_text(json.dumps({"fixed": ["a fixed stem"], "loose": ["a loose stem"]}))


def write_sessions(root: Path) -> None:
    """Two sessions in RadHAR's layout, 80 frames of ten points."""
    for number, name in enumerate(("walk/walk_1", "jump/jump_1")):
        path = root / "Train" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(session_point(k, number) for k in range(800)))


def session_point(number: int, seed: int) -> str:
    """One record of a RadHAR session."""
    return (
        f'header: \n  seq: {number}\n  stamp: \n    secs: 1561686032\n    nsecs: 5\n  frame_id: "ti_mmwave"\npoint_id: {number % 10}\n'
        f"x: 0.1\ny: 0.1\nz: 0.1\nrange: 3.0\nvelocity: {1.2 + 0.1 * seed}\ndoppler_bin: {10 + seed}\nbearing: 30.0\nintensity: 25.0\n---\n"
    )


FAMILIES = {"radar": (write_radar, "radar_text"), "films": (write_films, "image_folder"), "sessions": (write_sessions, "radhar")}
