"""hypothesis on every reader of foreign files: only the project's own errors may come out.

python scripts/fuzz_readers.py --minutes 10      # all readers in turn; prints examples a reader, and the falsifying file of a failure
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import made_up_files as made
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from made_up_files import ARRAY, SESSION, TABLE, TEXT, json_near
from sound_sets import write_films, write_radar

from mmexpert.data.findings import FaultList
from mmexpert.types import MmexpertError

Reader = Callable[[Path, bytes], None]
"""reader(empty folder, bytes): writes the bytes where a data set's file belongs, and reads them."""


def radhar_text(folder: Path, content: bytes) -> None:
    """A RadHAR session."""
    from mmexpert.data.radhar_text import read_session

    path = folder / "walk_1.txt"
    path.write_bytes(content)
    read_session(path)


def split_json(folder: Path, content: bytes) -> None:
    """A split file of source 1."""
    from mmexpert.data.radar_text_index import read_split_file

    (folder / "train.json").write_bytes(content)
    read_split_file(folder / "train.json", "train", folder, FaultList("fuzz", "skip"))


def class_texts(folder: Path, content: bytes) -> None:
    """A class-text file."""
    from mmexpert.data.class_texts import read_class_texts

    (folder / "class_texts.json").write_bytes(content)
    read_class_texts(str(folder / "class_texts.json"), folder)


def metadata(folder: Path, content: bytes) -> None:
    """metadata.csv of a folder of films."""
    _data_set("image_folder", folder, "metadata.csv", content)


def pictures_of_index(folder: Path, content: bytes) -> None:
    """An index of pictures with captions, and the pictures that it names."""
    _data_set("image_text", folder, "data.json", content)


def arrays_of_split(folder: Path, content: bytes) -> None:
    """A split file of source 1, and the arrays that it names."""
    _data_set("radar_text", folder, "train.json", content)


def image_text(name: str) -> Reader:
    """An index of pictures with captions, in one of its forms."""

    def read(folder: Path, content: bytes) -> None:
        from mmexpert.data.image_text_formats import read_rows

        (folder / name).write_bytes(content)
        columns = {"image": "image_path", "caption": "caption", "split": "split", "id": "id"}
        read_rows(folder, "auto", columns, FaultList("fuzz", "skip"))

    return read


def cirr(folder: Path, content: bytes) -> None:
    """CIRR's captions."""
    from mmexpert.data.cirr import read_cirr

    for name in ("captions", "image_splits"):
        (folder / "cirr" / name).mkdir(parents=True)
    (folder / "cirr/image_splits/split.rc2.val.json").write_text(json.dumps(made.CIRR_PATHS))
    (folder / "cirr/captions/cap.rc2.val.json").write_bytes(content)
    read_cirr(str(folder), "val")


def cirr_split(folder: Path, content: bytes) -> None:
    """CIRR's paths of pictures."""
    from mmexpert.data.cirr import read_cirr

    for name in ("captions", "image_splits"):
        (folder / "cirr" / name).mkdir(parents=True)
    (folder / "cirr/captions/cap.rc2.val.json").write_text("[]")
    (folder / "cirr/image_splits/split.rc2.val.json").write_bytes(content)
    read_cirr(str(folder), "val")


def fashion_iq(folder: Path, content: bytes) -> None:
    """FashionIQ's captions."""
    _fashion(folder, content, b'["a", "b"]')


def fashion_split(folder: Path, content: bytes) -> None:
    """FashionIQ's names of pictures."""
    _fashion(folder, b"[]", content)


def submission(folder: Path, content: bytes) -> None:
    """A submission file that somebody wants checked."""
    from mmexpert.data.composed_index import Annotations, Query
    from mmexpert.submission import faults_of, read_submission

    (folder / "recall.json").write_bytes(content)
    query = Query("q", "", "a", "b", "text", ("text",), ("a", "b"), 1)
    annotations = Annotations("test", (query,), {"": ("a", "b")}, ("a", "b"), {"a": (), "b": ()}, "split")
    faults_of([read_submission(folder / "recall.json")], annotations)


def humanml_captions(folder: Path, content: bytes) -> None:
    """A caption file of HumanML3D."""
    from mmexpert.data.humanml3d_text import read_captions

    (folder / "000001.txt").write_bytes(content)
    read_captions(folder / "000001.txt", 100, FaultList("fuzz", "skip"))


def array(folder: Path, content: bytes) -> None:
    """A .npy file."""
    from mmexpert.data.arrays import ArrayFile

    (folder / "a.npy").write_bytes(content)
    ArrayFile(folder / "a.npy", "", "r").array()


def _fashion(folder: Path, captions: bytes, names: bytes) -> None:
    from mmexpert.data.fashion_iq import read_fashion_iq

    for name in ("captions", "image_splits"):
        (folder / name).mkdir()
    (folder / "captions/cap.dress.val.json").write_bytes(captions)
    (folder / "image_splits/split.dress.val.json").write_bytes(names)
    read_fashion_iq(str(folder), ["dress"], "val", "split")


def _data_set(name: str, folder: Path, file: str, content: bytes) -> None:
    from omegaconf import OmegaConf

    from mmexpert.build import build_dataset
    from mmexpert.command_line import composed

    (write_radar if name == "radar_text" else write_films)(folder)
    (folder / file).write_bytes(content)
    if name not in _NODES:
        _NODES[name] = OmegaConf.to_container(composed(f"dataset={name}", "dataset.root=x", name="check_data").dataset)
    pixels = {"side": 32, "in_chans": 1, "mean": None, "std": None} if name == "image_folder" else {}
    build_dataset({"dataset": _NODES[name] | {"root": str(folder)} | pixels})


_NODES: dict[str, dict] = {}
READERS: dict[str, tuple[Reader, st.SearchStrategy[bytes]]] = {
    "RadHAR session": (radhar_text, SESSION),
    "split JSON": (split_json, json_near(made.SPLIT_FILE)),
    "class texts": (class_texts, json_near(made.CLASS_TEXTS)),
    "metadata.csv": (metadata, TABLE),
    "split JSON, arrays": (arrays_of_split, json_near(made.SPLIT_FILE)),
    "data.json, pictures": (pictures_of_index, json_near(made.RECORDS)),
    "data.json": (image_text("data.json"), json_near(made.RECORDS)),
    "Karpathy's JSON": (image_text("data.json"), json_near(made.KARPATHY)),
    "data.jsonl": (image_text("data.jsonl"), json_near(made.RECORDS[0])),
    "data.csv": (image_text("data.csv"), TABLE),
    "data.tsv": (image_text("data.tsv"), TABLE),
    "CIRR captions": (cirr, json_near(made.CIRR_ROWS)),
    "CIRR split": (cirr_split, json_near(made.CIRR_PATHS)),
    "FashionIQ captions": (fashion_iq, json_near(made.FASHION_ROWS)),
    "FashionIQ split": (fashion_split, json_near(made.FASHION_NAMES)),
    "submission": (submission, json_near(made.RANKING)),
    "HumanML3D captions": (humanml_captions, TEXT),
    ".npy": (array, ARRAY),
}


def attack(name: str, examples: int) -> int:
    """Reads so many made files; returns how many. Raises what a reader raises beside the project's errors, with the file's bytes."""
    reader, strategy = READERS[name]
    read = [0]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategy)
    def try_one(content: bytes) -> None:
        read[0] += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                reader(Path(folder), content)
            except MmexpertError:
                pass
            except Exception as error:
                error.add_note(f"{name} read {content[:300]!r}")
                raise

    try_one()
    return read[0]


def main() -> None:
    """Exit code 1 where a reader raised anything else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS))
    given_arguments = parser.parse_args()
    share, failed = 60 * given_arguments.minutes / len(given_arguments.only), []
    for name in given_arguments.only:
        try:
            began, read = time.monotonic(), 0
            while time.monotonic() - began < share:  # in rounds: hypothesis itself knows no time
                read += attack(name, 100)
            print(f"{name:20s} {read:7d} files", flush=True)
        except Exception:  # noqa: BLE001  every reader has its turn
            failed.append(name)
            print(f"{name:20s} failed:\n{traceback.format_exc()[-1500:]}", flush=True)
    print(f"{len(given_arguments.only)} readers, {len(failed)} with a foreign error")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
