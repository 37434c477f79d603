"""README's pictures: a simulated clip's three views beside a real RadHAR window's, and training curve and report of a finished run.

python scripts/make_pictures.py --radhar ../shared/data/radhar --run outputs/radar/default      # writes docs/pictures/

The report is drawn by Chromium, on a screen and on a phone; without it these two pictures stay as they are.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from mmexpert.build import build_dataset
from mmexpert.command_line import composed
from mmexpert.config import instantiate

WIDTHS = {"report": 1280, "report_narrow": 390}  # pixels
HEIGHT = 1900
OUT = Path(__file__).resolve().parents[1] / "docs" / "pictures"
AXES = {
    "range_time": ("range (m)", (0, 11.15)),
    "doppler_time": ("range rate (m/s)", (-6.06, 6.06)),
    "azimuth_time": ("direction cosine", (-1, 1)),
}


def simulated(cache: str) -> tuple[dict[str, np.ndarray], str, float]:
    """Views of a clip that walks and then does something else, its caption, frames per second."""
    given = ["train=40", "valid=0", "test=0", f"cache_dir={cache}"]
    dataset = instantiate(composed(*(f"dataset.{override}" for override in given)).dataset, "dataset")
    index = next(i for i, record in enumerate(dataset.records) if "walk" in record.captions[0] and "then" in record.captions[0])
    sample = dataset[(index, -1, 0)]
    return sample["radar"], sample["text"], 50.0


def real(root: str, cache: str) -> tuple[dict[str, np.ndarray], str, float]:
    """Views of 300 frames of a RadHAR session, moving points only."""
    given = [f"root={root}", f"cache_dir={cache}", "window=300", "augmentation=null"]
    node = composed("dataset=radhar", *(f"dataset.{override}" for override in given)).dataset
    dataset = build_dataset({"dataset": OmegaConf.to_container(node, resolve=True)})
    index = next(i for i, record in enumerate(dataset.records) if record.id.startswith("jack/"))
    return dataset[(index, -1, 0)]["radar"], dataset.records[index].id, 30.0


def draw(clips: list[tuple[str, tuple[dict[str, np.ndarray], str, float]]], path: Path) -> None:
    """A row a clip, a column a view; axes in units, brighter is stronger."""
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(clips), 3, squeeze=False)
    for line, (kind, (views, text, fps)) in zip(panels, clips, strict=True):
        for panel, (name, x) in zip(line, views.items(), strict=True):
            label, (low, high) = AXES[name]
            panel.imshow(x, origin="lower", aspect="auto", extent=(0, x.shape[1] / fps, low, high), cmap="magma", interpolation="nearest")
            panel.set(xlabel="time (s)", ylabel=label)
        line[1].set_title(f"{kind}: {text}", fontsize=10)
    figure.savefig(path, dpi=110)


def photograph(page: Path, width: int, path: Path, chromium: str) -> None:
    """The top of a page. It lies in a frame, because Chromium's window is never narrower than 500 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        frame, shot = Path(folder) / "frame.html", Path(folder) / "shot.png"
        frame.write_text(
            f'<body style="margin:0"><iframe src="{page.resolve().as_uri()}" style="width:{width}px;height:{HEIGHT}px;border:0">'
        )
        window = [f"--window-size={max(width, 500)},{HEIGHT}", "--hide-scrollbars", f"--screenshot={shot}", frame.as_uri()]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/u"]
        subprocess.run([chromium, *flags, *window], check=True, capture_output=True, timeout=90)
        with Image.open(shot) as picture:
            picture.convert("RGB").crop((0, 0, width, HEIGHT)).quantize(128).save(path, optimize=True)


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--radhar", required=True, help="root of the RadHAR data")
    parser.add_argument("--run", required=True, help="a finished run folder")
    parser.add_argument("--cache", default="outputs/cache")
    given = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    draw([("simulated", simulated(given.cache)), ("RadHAR", real(given.radhar, given.cache))], OUT / "views.png")
    shutil.copy(Path(given.run) / "plots" / "training_curves.png", OUT / "training_curves.png")
    names = ["views", "training_curves"]
    if chromium := shutil.which("chromium") or shutil.which("google-chrome"):
        names += WIDTHS
        for name, width in WIDTHS.items():
            photograph(Path(given.run) / "report.html", width, OUT / f"{name}.png", chromium)
    print(f"wrote {', '.join(names)} (.png) to {OUT}")


if __name__ == "__main__":
    main()
