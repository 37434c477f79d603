"""What a report shows of an evaluation: twelve queries with what was found, and a small map of scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmexpert.data.records import Record, RecordDataset
from mmexpert.data.sampling import EVALUATION
from mmexpert.data.thumbnails import Thumbnail, thumbnail
from mmexpert.evaluators.galleries import Gallery
from mmexpert.metrics.ranks import Ranking, unit

SHOWN = 12  # queries
FOUND = 5  # results beside each
_MAP_SIDE = 32  # queries and targets on the map of scores

Scores = Callable[[Tensor], Tensor]
"""Query rows [b] -> scores [b, Ng]."""


@dataclass
class Examples:
    """rows: {direction, rank, query, results}, where query and each result is a dict of text, and `picture` where it has one; a result
    also has score and right. score: its name. choice: how the queries were chosen. heat_map: {caption, rows, columns, values}.
    picture: the thumbnail of a key that stands under `picture`; called when the files are written."""

    rows: list[dict[str, Any]]
    score: str
    choice: str
    picture: Callable[[Any], Thumbnail]
    heat_map: dict[str, Any] | None = None


def retrieval_examples(
    dataset: RecordDataset, ids: Sequence[int], gallery: Gallery, rankings: dict[str, Ranking], scores: Tensor | None, score: str
) -> Examples:  # fmt: skip
    """Six queries of each direction, evenly spread from the best found to the worst. scores [Nq, Ng], or None: cosines of the gallery.

    ids: record of each collected row.
    """
    if scores is None:
        query, target = unit(gallery.query, "query"), unit(gallery.target, "target")
        ways: list[Scores] = [lambda rows: query[rows] @ target.T, lambda rows: target[rows] @ query.T]
    else:
        ways = [lambda rows: scores[rows], lambda rows: scores.T[rows]]
    sides = [
        (gallery.query_keys, [_shown(dataset, ids[row], True) for row in gallery.query_rows.tolist()]),
        (gallery.target_keys, [_shown(dataset, index, False) for index in ids]),
    ]
    rows = []
    for (name, ranking), way, ends in zip(rankings.items(), ways, (sides, sides[::-1]), strict=True):
        rows += _found(name, ranking, way, *ends)
    choice = "of each direction six, evenly from the best found query to the worst"
    return Examples(rows, score, choice, lambda index: thumbnail(dataset[index, EVALUATION, 0]), _pair_map(gallery, sides, ways[0]))


def _shown(dataset: RecordDataset, index: int, query: bool) -> dict[str, Any]:
    """A row of a side: the query side is what has pictures, the target side is its caption."""
    record: Record = dataset.records[index]
    text = record.captions[0] if record.captions else ""
    return {"id": record.item or record.id, "picture": index, "text": text} if query else {"id": record.id, "text": text}


def _found(
    name: str, ranking: Ranking, scores: Scores, queries: tuple[Tensor, list[dict[str, Any]]], targets: tuple[Tensor, list[dict[str, Any]]]
) -> list[dict[str, Any]]:  # fmt: skip
    places = spread(ranking.rank, SHOWN // 2)
    kept = ranking.kept[places]
    found = scores(kept).float()
    rows = []
    for place, row, line in zip(places.tolist(), kept.tolist(), found, strict=True):
        right = targets[0] == queries[0][row]
        first = ranking.top[place][:FOUND].tolist()
        if not bool(right[first].any()):  # what should have been found stands at the end
            first.append(int(torch.where(right, line, -torch.inf).argmax()))
        results = [targets[1][column] | {"score": float(line[column]), "right": bool(right[column])} for column in first]
        rows.append({"direction": name, "rank": float(ranking.rank[place]), "query": queries[1][row], "results": results})
    return rows


def spread(rank: Tensor, count: int) -> Tensor:
    """Places of count entries, evenly from the lowest to the highest; of equal ones the first come first."""
    order = rank.sort(stable=True).indices
    return order[torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()]


def _pair_map(gallery: Gallery, sides: list[tuple[Tensor, list[dict[str, Any]]]], scores: Scores) -> dict[str, Any]:
    """Scores of some items with their first captions, in the order of these captions: like ones stand together, pairs on the diagonal."""
    count = len(gallery.query)
    items = torch.linspace(0, count - 1, min(_MAP_SIDE, count)).round().long().tolist()
    firsts: dict[int, int] = {}
    for column, item in enumerate(gallery.owner.tolist()):
        firsts.setdefault(item, column)
    texts = {item: sides[1][1][firsts[item]]["text"] or sides[1][1][firsts[item]]["id"] for item in items}
    items = sorted(items, key=lambda item: texts[item])
    values = scores(torch.tensor(items))[:, torch.tensor([firsts[item] for item in items])]
    return {
        "caption": f"{len(items)} queries (rows) and their own targets (columns), in the order of the captions: pairs are on the diagonal",
        "rows": [sides[0][1][item]["id"] for item in items],
        "columns": [texts[item] for item in items],
        "values": values.double().tolist(),
    }


def class_examples(
    dataset: RecordDataset, ids: Sequence[int], probabilities: np.ndarray, by_texts: tuple[Tensor | None, str], direction: str
) -> Examples:
    """Twelve samples, evenly from the best told to the worst; means by class of the scores with the class texts (by_texts: [n, K] and
    the score's name), or of the probabilities [n, K] where there are none."""
    texts, score = by_texts
    measure = "cosine" if score == "pooled" else f"{score} score"
    names = dataset.classes.names
    labels = np.array([dataset.records[i].label for i in ids])
    own = probabilities[np.arange(len(labels)), labels]
    rank = 1 + (probabilities > own[:, None]).sum(1)
    rows = []
    for place in spread(torch.from_numpy(-own), SHOWN).tolist():
        record, line = dataset.records[ids[place]], probabilities[place]
        first = np.argsort(-line, kind="stable")[:FOUND].tolist()
        first += [labels[place]] if labels[place] not in first else []
        results = [{"text": names[k], "score": float(line[k]), "right": bool(k == labels[place])} for k in first]
        query = {"id": record.id, "picture": ids[place], "text": names[record.label]}
        rows.append({"direction": direction, "rank": int(rank[place]), "query": query, "results": results})
    scores, what = (
        (probabilities, "probability of each class") if texts is None else (texts.double().numpy(), f"{measure} with each class text")
    )
    there = [k for k in range(len(names)) if (labels == k).any()]
    heat = {
        "caption": f"mean {what} (columns) over the samples of a class (rows)",
        "rows": [names[k] for k in there],
        "columns": list(names),
        "values": [scores[labels == k].mean(0).tolist() for k in there],
    }
    choice = "evenly from the sample whose class has the highest probability to the lowest"
    return Examples(rows, "probability", choice, lambda index: thumbnail(dataset[index, EVALUATION, 0]), heat)
