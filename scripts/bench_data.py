"""Radar batches from files and from packs, beside the plain way: three arrays loaded, normalised, padded, joined.

64 clips of 96..496 frames, one batch an epoch of 64; samples a second, and the largest difference from the plain batch.

    python scripts/bench_data.py [--quick] [--rounds 3] [--out FILE.json]
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Table, agree, arguments, seconds

from mmexpert.build import build_dataset
from mmexpert.command_line import composed
from mmexpert.config import check
from mmexpert.data.collate import Collate
from mmexpert.data.frames import expanded
from mmexpert.data.records import RecordDataset
from mmexpert.data.views import VIEW_ROWS
from mmexpert.data.workers import BatchSource, Stream, WorkerSettings
from mmexpert.types import Batch

CLIPS = 64
GOALS = {"map f32": (3.0, 1e-6), "pack f16": (20.0, 5e-4)}
FLOOR_DB = -60


def write_clips(root: Path) -> None:
    """Clips of 96..496 frames in both layouts, and the split file."""
    rng = np.random.default_rng(0)
    for layout in ("npy", "npz"):
        for i, frames in enumerate(rng.integers(96, 497, CLIPS).tolist()):
            views = {view: rng.random((rows, frames), np.float32) ** 8 for view, rows in VIEW_ROWS.items()}
            (root / layout).mkdir(parents=True, exist_ok=True)
            if layout == "npz":
                np.savez(root / layout / f"{i:03d}.npz", **views)
            else:
                for view, x in views.items():
                    np.save(root / layout / f"{i:03d}_{view}.npy", x)
        rng = np.random.default_rng(0)  # the same clips in the other layout
        records = [{"filefolder": layout, "fileindex": f"{i:03d}", "captions": ["a clip"]} for i in range(CLIPS)]
        (root / f"{layout}.json").write_text(json.dumps(records), encoding="utf-8")


def radar_text(root: Path, layout: str, pack: str) -> RecordDataset:
    """The clips as a run builds them."""
    changes = [
        f"root={root}",
        f"splits={{train: [{layout}.json], valid: [], test: []}}",
        f"pack={pack}",
        f"cache_dir={root / 'cache'}",
        "positives=instance",
    ]
    return build_dataset(check(composed("dataset=radar_text", *(f"dataset.{change}" for change in changes))))


def plain(root: Path) -> Batch:
    """The usual way: load, normalise and pad each clip to the longest of all, then stack; normalised over the padded batch."""
    clips = [{view: np.load(root / "npy" / f"{i:03d}_{view}.npy") for view in VIEW_ROWS} for i in range(CLIPS)]
    lengths = torch.tensor([clip["range_time"].shape[1] for clip in clips])
    frames = -(-int(lengths.max()) // 16) * 16
    real = (torch.arange(frames) < lengths[:, None])[:, None]
    batch = {}
    for view in VIEW_ROWS:
        x = torch.stack([torch.from_numpy(np.pad(clip[view], ((0, 0), (0, frames - clip[view].shape[1])))) for clip in clips])
        decibel = 20 * torch.log10(x.clamp(min=1e-12) / x.amax((1, 2), keepdim=True))
        batch[view] = (decibel.clamp(FLOOR_DB, 0) / -FLOOR_DB + 1).where(real, 0)
    return batch


def epochs(dataset: RecordDataset, workers: int) -> tuple[Callable[[], Batch], Callable[[], None]]:
    """What loads the 64 clips as one batch, as it travels; and what ends the workers."""
    collate = Collate(lambda texts: {"input_ids": torch.zeros(len(texts), 1)}, dataset.unit_length, dataset.pad_to, dataset.max_length)
    stream = Stream(BatchSource(dataset, collate), WorkerSettings(workers, 2, False, 60), 0, persistent=True)
    draws = [(i, -1, 0) for i in range(len(dataset))]
    return lambda: next(stream.batches([draws])), stream.close


def main() -> None:
    """Checks that all ways give the same views, then times them."""
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_clips(root)
        sets = {
            "npy": radar_text(root, "npy", "none"),
            "npz": radar_text(root, "npz", "none"),
            "map f32": radar_text(root, "npy", "f32"),
            "pack f16": radar_text(root, "npy", "f16"),
        }
        expected = plain(root)
        table = Table(given.out)
        loads = {name: epochs(dataset, 0)[0] for name, dataset in sets.items()}
        for name, load in loads.items():
            views = expanded(load())["radar"]
            error = max(float((views[view] - x).abs().max()) for view, x in expected.items())
            limit = GOALS.get(name, (0, 2e-6))[1] + 1e-6  # the plain way's own logarithm
            if error > limit:
                raise SystemExit(f"{name}: views differ from the plain way's by {error:.1e}, at most {limit:.1e} were expected")
            agree(name, {"plain": [x.flatten() for x in expected.values()], name: [views[view].flatten() for view in expected]}, 1e-3)
            print(f"# {name}: largest difference {error:.1e}")
        taken = seconds({"plain": lambda: plain(root), **loads}, given.rounds, given.clock)
        made = {f"{name}, views made": (lambda load=load: expanded(load())) for name, load in loads.items() if name in GOALS}
        taken |= seconds(made, given.rounds, given.clock)
        for name, value in taken.items():
            if name != "plain":
                case = f"radar batch of {CLIPS}, {name} ({CLIPS / value:.0f} samples/s)"
                table.row(case, value, taken["plain"], None, GOALS.get(name, (None,))[0], None)
        if not given.quick:
            with_workers(sets, given.rounds)
        table.finish()


def with_workers(sets: dict[str, RecordDataset], rounds: int) -> None:
    """Wall-clock samples a second with two loader processes; no goal, since it depends on what else the machine does."""
    for name, dataset in sets.items():
        load, close = epochs(dataset, 2)
        load()
        start = time.perf_counter()
        for _ in range(rounds):
            load()
        print(f"# {name}, 2 workers: {rounds * CLIPS / (time.perf_counter() - start):.0f} samples/s by the wall clock")
        close()


if __name__ == "__main__":
    main()
