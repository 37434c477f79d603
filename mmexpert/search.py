"""`python -m mmexpert.search index=outputs/embed/NAME text="a red circle" [k=10]`: the entries of an index nearest to a query.

index: a folder that mmexpert.embed has written. text: a sentence. image: a picture. clip: a radar clip, `a/x.npz` or `a/<view>/x.npy`.
image and clip may be names of the index too, as the table prints them. text and image together need a composed model. k: rows shown.
run: where the model lies now; without it where it was when the index was made. name: of the result; without it made from index and
query. device: auto | cpu | cuda.
Writes outputs/search/NAME/: results.json [{rank, name, score}] and sheet.png (the query, then the k nearest). Score: cosine, -1..1.
"""

import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

from mmexpert.command_line import launch, trust_list
from mmexpert.own_keys import own_values, plain_name, shown_help
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
OWN_KEYS = {"index": None, "text": None, "image": None, "clip": None, "k": "10", "run": None, "name": None, "device": "auto"}
ROLES = {"text": "text", "image": "image", "clip": "radar"}


def application() -> None:
    """The command."""
    if shown_help(__doc__):
        return
    own = own_values(sys.argv[1:], OWN_KEYS)
    if own["index"] is None:
        raise ConfigError("index=outputs/embed/NAME is needed: a folder that mmexpert.embed has written")
    query = {role: own[key] for key, role in ROLES.items() if own[key] is not None}
    if not query or ("radar" in query and len(query) > 1):
        raise ConfigError("text=SENTENCE, image=FILE, both of them, or clip=FILE is needed")
    if not (own["k"].isdecimal() and int(own["k"]) > 0):
        raise ConfigError(f"k={own['k']}: a whole number of at least 1")
    place = Path(own["index"])
    digest = hashlib.sha256(repr(sorted(query.items())).encode()).hexdigest()[:8]
    search(place, query, int(own["k"]), own, plain_name(own["name"] or f"{place.resolve().name}_{digest}"))


def search(place: Path, query: dict[str, str], k: int, own: dict[str, Any], name: str) -> None:
    """Ranks an index by the query {role: text or path}; logs the first k rows and writes the folder."""
    from mmexpert.contact_sheet import contact_sheet
    from mmexpert.embed_index import Index, query_features, replaced
    from mmexpert.engine.files import strict_json, write_atomic
    from mmexpert.loading import load

    index = Index.read(place)
    stored = {role: row for role, value in query.items() if role != "text" and (row := index.row_named(role, value)) is not None}
    query |= {role: str(Path(index.meta["root"]) / query[role]) for role in stored}
    if stored and len(query) == 1:
        features = index.features[list(stored.values())]
    else:
        model = load(own["run"] or index.meta["run"], own["device"], tuple(trust_list))
        index.check_model(model)
        features = query_features(model, query)
    rows = index.nearest(features, k)
    if k > len(rows):
        log.info("k=%d: the index has %d rows, all of them are shown", k, len(rows))
    for row in rows:
        log.info("%4d  %7.4f  %s", row["rank"], row["score"], row["name"])
    with replaced(Path("outputs/search") / name) as folder:
        write_atomic(folder / "results.json", strict_json(rows, indent=1))
        contact_sheet(folder / "sheet.png", query, index, rows)
    log.info("in %s: results.json, sheet.png", Path("outputs/search") / name)


def main() -> None:
    """Entry point of `python -m mmexpert.search` and mmexpert-search."""
    launch(application)


if __name__ == "__main__":
    main()
