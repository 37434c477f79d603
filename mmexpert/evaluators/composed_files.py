"""What the files of a composed evaluation show: ranks.csv, the sheet of retrieved pictures, bars."""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmexpert.data.thumbnails import framed
from mmexpert.evaluators.examples import FOUND, SHOWN, Examples, spread
from mmexpert.metrics.composed import ComposedRanks
from mmexpert.metrics.ranks import unit

if TYPE_CHECKING:
    from mmexpert.evaluators.composed import Composed

_SHEET = 12  # queries on retrieved.png
_FIRST = 5  # pictures beside each


def ranks_rows(
    encoded: "Composed", dataset: Any, part: str, ranks: dict[str, ComposedRanks], order: Tensor
) -> list[dict[str, Any]]:  # fmt: skip
    """A row a query in the order of ids: id, group, reference, target, caption, rank, group rank, gallery, first 10 names."""
    ids, position = dataset.pictures(part).ids, 0
    names = {number: name for name, number in ids.items()}
    found: dict[int, dict[str, Any]] = {}
    for category, ranked in ranks.items():
        gallery = dataset.galleries(part)["" if category == "all" else category]
        for i, rank in enumerate(ranked.rank.tolist()):
            record = dataset.records[int(encoded.ids[order[position + i]])]
            query = record.source
            row = {"id": record.id, "group": record.group, "reference": query.reference, "target": query.target, "caption": query.text}
            row |= {"rank": rank, "group_rank": None if ranked.group_rank is None else float(ranked.group_rank[i])}
            row |= {"gallery": ranked.gallery, "first_10": " ".join(names[int(gallery[j])] for j in ranked.ranking.top[i].tolist())}
            found[int(order[position + i])] = row
        position += len(ranked.rank)
    return [found[i] for i in sorted(found)]


def composed_tables(encoded: "Composed", dataset: Any, part: str, ranks: dict[str, ComposedRanks], order: Tensor) -> dict[str, Any]:
    """queries: the rows of ranks.csv; retrieved: 12 queries spread over the part, and how to get their pictures when a sheet is drawn;
    examples for the report; n10 and
    query_ranks by gallery."""
    rows = ranks_rows(encoded, dataset, part, ranks, order)
    spread = torch.linspace(0, len(rows) - 1, min(_SHEET, len(rows))).long().tolist()
    sheet = []
    for i in spread:
        row = rows[i]
        shown = [row["reference"], row["target"], *row["first_10"].split()[:_FIRST]]
        sheet.append({"caption": row["caption"], "rank": row["rank"], "names": shown})
    n10 = {name: torch.bincount(ranked.ranking.top.flatten(), minlength=ranked.gallery).tolist() for name, ranked in ranks.items()}
    return {
        "queries": rows,
        "retrieved": sheet,
        "thumbnail": partial(dataset.thumbnail, part),
        "examples": partial(composed_examples, encoded, dataset, part, rows),
        "n10": n10,
        "query_ranks": {name: ranked.rank.tolist() for name, ranked in ranks.items()},
    }


def composed_examples(encoded: "Composed", dataset: Any, part: str, rows: list[dict[str, Any]]) -> Examples:
    """Twelve queries, evenly from the best found target to the worst: reference and caption, what was found, and the target.

    rows: of ranks_rows, one a query of encoded.
    """
    query, pictures = unit(encoded.query, "query"), unit(encoded.pictures, "picture")
    ids = dataset.pictures(part).ids
    column = {number: place for place, number in enumerate(encoded.picture_ids.tolist())}
    found = []
    for i in spread(torch.tensor([row["rank"] for row in rows]), SHOWN).tolist():
        row = rows[i]
        names = row["first_10"].split()[:FOUND]
        names = names if row["target"] in names else [*names, row["target"]]
        scores = (query[i] @ pictures[[column[ids[name]] for name in names]].T).tolist()
        results = [
            {"id": name, "picture": name, "text": "", "score": score, "right": name == row["target"]}
            for name, score in zip(names, scores, strict=True)
        ]
        asked = {"id": row["reference"], "picture": row["reference"], "text": row["caption"]}
        found.append({"direction": "reference and caption_to_target", "rank": row["rank"], "query": asked, "results": results})

    def picture(name: str) -> dict[str, np.ndarray]:
        return {"image": framed(dataset.thumbnail(part, name).convert("RGB"))}

    return Examples(found, "cosine", "evenly from the best found target to the worst", picture)
