"""Bytes of made-up files, as strategies of hypothesis: near enough to the formats to come past a reader's first line."""

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from sound_sets import npy, session_point

_WORDS = [
    *("filefolder", "fileindex", "captions", "classid", "classname", "group", "split", "image_path", "caption", "id", "file", "label"),
    *("fixed", "loose", "fixed/P0_0.png", "pairid", "reference", "target_hard", "target_soft", "img_set", "members", "candidate", "target"),
    *("version", "rc2", "metric", "recall", "../x", "/etc", "dev-1", "train", "val", "a", "b"),
    *("x" * 300, "y/" * 3000, "half \ud800", "null \0", "new\nline", ".", ""),
]
_texts = st.one_of(st.sampled_from(_WORDS), st.text(max_size=12))
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from([10**400, -1, 2**63]), st.floats(), _texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=5)),
    max_leaves=20,
)
_session = st.lists(
    st.one_of(
        st.just(session_point(0, 0)),
        st.sampled_from(session_point(1, 0).splitlines(True)),
        st.text(max_size=20),
        st.builds("{}: {}\n".format, st.sampled_from(["range", "point_id", "doppler_bin", "secs"]), st.one_of(st.floats(), st.integers())),
    ),
    max_size=12,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
_lines = st.lists(st.lists(_texts, max_size=5).map(",".join), max_size=5)
_table = st.one_of(_lines, _lines.map(lambda lines: ["file,label,group", *lines]), _lines.map(lambda lines: ["image_path,caption", *lines]))
SESSION = st.one_of(_session, st.binary(max_size=100))
JSON = st.one_of(_json.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60))
TABLE = st.one_of(_table.map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")), st.binary(max_size=60))
TEXT = st.one_of(_table.map(lambda lines: "#".join(lines).encode("utf-8", "surrogatepass")), st.binary(max_size=60))
_ARRAY = npy(np.ones((3, 4), np.float32))
ARRAY = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.integers(0, len(_ARRAY)), st.binary(max_size=8)).map(
        lambda cut: _ARRAY[: cut[0]] + cut[1] + _ARRAY[cut[0] + len(cut[1]) :]
    ),
)


def nearly(value: Any) -> st.SearchStrategy[Any]:
    """A sound value of which some parts are missing, repeated or anything."""
    if isinstance(value, dict):
        parts: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional={key: nearly(part) for key, part in value.items()})
        return st.one_of(
            st.just(value), parts, st.builds(lambda one, more: value | one | more, parts, st.dictionaries(_texts, _json, max_size=1))
        )
    if isinstance(value, list):
        parts = st.tuples(*map(nearly, value)).map(list)
        return st.one_of(parts, st.lists(st.one_of(*map(nearly, value), _json), max_size=2 * len(value)))
    return st.one_of(st.just(value), st.just(value), st.just(value), _json)


def json_near(value: Any) -> st.SearchStrategy[bytes]:
    """Bytes near a sound file; any JSON; any bytes."""
    numbers = st.just(b'[{"id": ' + b"1" * 5000 + b"}]")  # more digits than Python turns into a number
    return st.one_of(nearly(value).map(json.dumps).map(str.encode), nearly(value).map(json.dumps).map(str.encode), JSON, numbers)


_SIX = [f"dev-{k}" for k in range(6)]
SPLIT_FILE = [{"filefolder": "clips", "fileindex": f"{k:06d}", "captions": ["a", "b"], "classid": k, "group": "g"} for k in range(2)]
CLASS_TEXTS = {"fixed": ["a stem", "b"], "loose": "c"}
RECORDS = [{"image_path": "fixed/P0_0.png", "caption": ["a", "b"], "split": "train", "id": "1"}] * 2
KARPATHY = {"images": [{"filepath": "fixed", "filename": "P0_0.png", "split": "restval", "sentences": [{"raw": "a"}, "b"]}]}
CIRR_PATHS = {name: f"./dev/{name}.png" for name in _SIX}
CIRR_ROWS = [{"pairid": k, "reference": _SIX[k], "target_hard": "dev-5", "caption": "x", "img_set": {"members": _SIX}} for k in range(2)]
FASHION_ROWS = [{"candidate": "a", "target": "b", "captions": ["c", "d"]}]
FASHION_NAMES = ["a", "b"]
RANKING = {"version": "rc2", "metric": "recall", "1": ["a", "b"]}
