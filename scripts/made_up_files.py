"""Bytes of made-up files, as strategies of hypothesis: near enough to the formats to come past a reader's first line."""

import json

import numpy as np
from hypothesis import strategies as st
from sound_sets import npy, session_point

_WORDS = [
    *("filefolder", "fileindex", "captions", "classid", "classname", "group", "split", "image_path", "caption", "id", "file", "label"),
    *("fixed", "loose", "fixed/P0_0.png", "pairid", "reference", "target_hard", "target_soft", "img_set", "members", "candidate", "target"),
    *("version", "rc2", "metric", "recall", "../x", "/etc", "dev-1", "train", "val", "a", "b"),
]
_texts = st.one_of(st.sampled_from(_WORDS), st.text(max_size=12))
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _texts),
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
