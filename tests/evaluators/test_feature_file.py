"""Feature files: the figures of the test vector, and every error with file and array."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
from composed_vector import SHARED, gallery_features, text_features
from numpy.lib import format as npy

from mmexpert.evaluators.feature_file import read_features, score_features
from mmexpert.types import ConfigError, DataError

needs_annotations = pytest.mark.skipif(not (SHARED / "cirr").is_dir(), reason=f"the real annotations are not in {SHARED}")


def small(queries: int = 4, gallery: int = 9, dim: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = np.array([f"n{i}" for i in range(gallery)])
    return {
        "gallery": rng.normal(size=(gallery, dim)),
        "gallery_names": names,
        "references": names[:queries],
        "targets": names[1 : queries + 1],
        "text_features": rng.normal(size=(queries, dim)).astype(np.float16),
        "members": np.stack([np.roll(names, -i)[:6] for i in range(queries)]),
    }


def saved(folder, arrays):
    path = folder / "f.npz"
    np.savez(path, **arrays)
    return path


def of(found, category):
    names = found.galleries[category]
    arrays = {
        "gallery": gallery_features(names).numpy(),
        "gallery_names": np.array(names),
        "references": np.array([query.reference for query in found.queries]),
        "targets": np.array([query.target for query in found.queries]),
        "text_features": text_features(found.queries).numpy(),
    }
    return arrays | ({"members": np.array([query.members for query in found.queries])} if category == "" else {})


@needs_annotations
def test_the_command_writes_the_figures_of_the_cirr_vector(tmp_path, monkeypatch):
    from mmexpert.data.cirr import read_cirr
    from mmexpert.feature_scores import evaluate_features

    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, of(read_cirr(str(SHARED / "cirr"), "val"), ""))
    evaluate_features(path, ["evaluator.protocol=cirr", "evaluator.combine=normalised_sum", "name=mine"], ())
    found = json.loads((tmp_path / "outputs/evaluate/mine/metrics.json").read_text())
    assert [found[f"hits@{k}"] for k in (1, 5, 10, 50)] == [629, 1385, 1792, 2885]
    assert [found[f"Rs_hits@{k}"] for k in (1, 2, 3)] == [3704, 4061, 4151]
    assert found["R@1"] == pytest.approx(100 * 629 / 4181, abs=1e-9)
    assert (found["queries"], found["gallery"], found["protocol"]["combiner"]) == (4181, 2297, "normalised_sum")


def test_queries_that_ask_for_nothing_are_warned_of_and_chance_stands_beside_the_figures(tmp_path, caplog):
    same = small()
    same["targets"] = same["references"].copy()
    same["targets"][0] = "n1"
    read_features(saved(tmp_path, same), "cirr")
    assert "3 of 4 queries have their reference as target" in caplog.text
    _, told = score_features(read_features(saved(tmp_path, small()), "cirr"), "cirr", "sum", "pessimistic")
    assert told["chance"]["R@1"] == 12.5 and told["chance"]["R@50"] == 100  # eight others in a gallery of nine


def test_results_of_other_protocols_have_names_of_their_own(tmp_path):
    from mmexpert.feature_scores import settings

    names = [settings(tmp_path / "f.npz", [f"evaluator.protocol={name}"], ())[0] for name in ("cirr", "fashioniq")]
    assert names == ["f,evaluator.protocol=cirr", "f,evaluator.protocol=fashioniq"]
    with pytest.raises(ConfigError, match=r"name=\.\./mine"):
        settings(tmp_path / "f.npz", ["name=../mine"], ())


@needs_annotations
def test_the_fashioniq_protocol_keeps_the_reference_in_the_gallery(tmp_path):
    from mmexpert.data.fashion_iq import read_fashion_iq

    path = saved(tmp_path, of(read_fashion_iq(str(SHARED / "fashioniq"), ["dress"], "val", "union"), "dress"))
    for combine, hits in (("sum", (959, 1444)), ("image", (9, 43))):
        metrics, told = score_features(read_features(path, "fashioniq"), "fashioniq", combine, "pessimistic")
        assert (metrics["hits@10"], metrics["hits@50"]) == hits
        assert metrics["average"] == pytest.approx((metrics["R@10"] + metrics["R@50"]) / 2)
        assert told["reference"] == "in the gallery"


def test_reference_features_of_their_own_take_the_place_of_gallery_rows(tmp_path):
    arrays = small()
    own = read_features(saved(tmp_path, arrays | {"reference_features": arrays["gallery"][:4]}), "fashioniq")
    rows = read_features(saved(tmp_path, arrays), "fashioniq")
    assert own.own_references and not rows.own_references
    assert (own.reference_features == rows.reference_features).all()


def test_a_file_of_one_query_is_scored(tmp_path):
    metrics, _ = score_features(read_features(saved(tmp_path, small(1)), "cirr"), "cirr", "sum", "pessimistic")
    assert metrics["queries"] == 1 and metrics["median_rank"] >= 1


def dropped(name):
    return lambda arrays: arrays.pop(name)


def put(name, value):
    return lambda arrays: arrays.__setitem__(name, value(arrays[name]) if name in arrays else value(None))


def cell(name, place, value):
    def change(arrays):
        arrays[name] = arrays[name].astype("U12") if arrays[name].dtype.kind == "U" else arrays[name]
        arrays[name][place] = value

    return change


FAULTS = {
    "no gallery": (dropped("gallery"), "no array 'gallery'"),
    "no members": (dropped("members"), "no array 'members'"),
    "unknown array": (put("text_feature", lambda _: np.ones(3)), "unknown array 'text_feature'"),
    "unknown reference": (cell("references", 2, "x"), "1 names of references are not in gallery_names, the first is 'x'"),
    "unknown target": (cell("targets", 0, "x"), "names of targets are not in gallery_names"),
    "unknown member": (cell("members", (1, 5), "x"), "names of members are not in gallery_names"),
    "repeated name": (cell("gallery_names", 8, "n7"), "gallery_names holds 'n7' more than once"),
    "repeated member": (cell("members", (1, 5), "n2"), "members of query 1 are not six distinct names"),
    "member without target": (cell("members", (1, 1), "n8"), "members of query 1 lack its target"),
    "members of five": (put("members", lambda array: array[:, :5]), r"members is \[4, 5\], expected \[Nq, 6\]"),
    "fewer names": (put("gallery_names", lambda array: array[:-1]), "gallery has 9 rows, gallery_names 8"),
    "fewer targets": (put("targets", lambda array: array[:-1]), "references has 4 names, targets 3"),
    "fewer texts": (put("text_features", lambda array: array[:-1]), r"text_features is \[3, 5\], expected \[4, 5\]"),
    "other width": (put("text_features", lambda array: array[:, :-1]), r"text_features is \[4, 4\], expected \[4, 5\]"),
    "flat gallery": (put("gallery", lambda array: array.ravel()), r"gallery is \[45\]"),
    "whole numbers": (put("gallery", lambda array: array.astype(int)), "dtype int64, expected floats"),
    "nan": (cell("text_features", (3, 0), np.nan), "1 rows of text_features are zero or not finite in fp32, the first is row 3"),
    "too large for fp32": (cell("gallery", (5, 0), 1e300), "1 rows of gallery are zero or not finite in fp32, the first is row 5"),
    "zero row": (cell("gallery", 4, 0.0), "1 rows of gallery are zero or not finite"),
    "names as bytes": (put("references", lambda array: array.astype("S4")), "references has dtype .S4, expected a unicode array"),
    "names as objects": (put("targets", lambda array: array.astype(object)), "member targets .*holds Python objects.*nothing is unpickled"),
    "pairids twice": (put("pairids", lambda _: np.array([1, 2, 2, 3])), "pairids must be distinct integers"),
    "texts of other length": (put("texts", lambda _: np.array(["a"])), r"texts is \[1\], expected \[4\]"),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_each_fault_of_a_file_is_named(tmp_path, change, message):
    arrays = small()
    change(arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_features(saved(tmp_path, arrays), "cirr")
    assert "f.npz" in str(caught.value)


def test_files_that_are_no_npz_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_features(tmp_path / "none.npz", "cirr")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="no readable .npz file"):
        read_features(tmp_path / "text.npz", "cirr")
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(DataError, match="no readable .npz file"):
        read_features(tmp_path / "single.npy", "cirr")


def declaring(shape: tuple[int, ...]) -> bytes:
    """A .npy member of 64 bytes of numbers whose header says float32 of a shape."""
    content = io.BytesIO()
    npy.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return content.getvalue() + b"0" * 64


def test_a_file_that_declares_more_than_it_holds_is_refused_before_memory_is_asked_for(tmp_path):
    path = saved(tmp_path, small())
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (held | {"gallery.npy": declaring((2**36, 1))}).items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="member gallery .*bytes of the 2748779.* that its header declares"):
        read_features(path, "cirr")


def test_more_members_or_bytes_than_an_archive_may_declare_are_refused(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, **{f"a{i}": np.ones(1) for i in range(65)})
    with pytest.raises(DataError, match="declares 65 members .* at most 64 and 4 GiB are read"):
        read_features(path, "cirr")
    np.savez(path, gallery=np.ones(1), targets=np.ones(1))
    content = bytearray(path.read_bytes())
    for place in (match.start() for match in re.finditer(b"PK\x01\x02", bytes(content))):  # entries of the directory
        content[place + 24 : place + 28] = (3 << 30).to_bytes(4, "little")  # size once unpacked
    path.write_bytes(content)
    with pytest.raises(DataError, match="declares 2 members of 6442450944 bytes"):
        read_features(path, "cirr")


def test_the_command_asks_for_the_protocol_and_refuses_other_keys(tmp_path, monkeypatch):
    from mmexpert.feature_scores import evaluate_features

    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, small())
    with pytest.raises(ConfigError, match="evaluator.protocol=fashioniq or evaluator.protocol=cirr"):
        evaluate_features(path, [], ())
    with pytest.raises(ConfigError, match="trainer.epochs=3: features=FILE takes"):
        evaluate_features(path, ["trainer.epochs=3"], ())
    with pytest.raises(ConfigError, match=r"name=\.\./x: letters, digits"):
        evaluate_features(path, ["evaluator.protocol=cirr", "name=../x"], ())
