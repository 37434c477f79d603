"""What every evaluator needs: the encoded part, complete and in the order of its ids, on every rank."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.evaluators.rows import gather_rows, on_cpu, rows_of
from mmexpert.evaluators.step_terms import StepTerms
from mmexpert.types import DataError, Encoding, Pair

_OWN = ("id", "group", "repeat", "fold", "label", "predicted", "gallery")  # columns of predictions.csv and oof_predictions.csv


@dataclass
class Evaluation:
    """metrics: floats by name, no part prefix. protocol: how they were measured. tables: what plots and files show. predictions: a row
    a sample."""

    metrics: dict[str, float]
    protocol: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Collected:
    """n samples of a part, fp32 on the CPU, sorted by id. Sequences are padded to the longest; absent fields are None."""

    ids: Tensor  # int64 [n] index into the data set's records
    keys: Tensor  # int64 [n] positive_key
    query: Encoding
    target: Encoding
    class_logits: Tensor | None = None  # [n, K]
    label: Tensor | None = None  # [n]
    hard: dict[str, Tensor] | None = None  # id [h], kind [h], margin by score name [h]
    terms: dict[str, float] | None = None  # of StepTerms, where the loss reads more of a batch than its labels


def collect(objective: nn.Module, loaders: Any, accelerator: Any, part: str, view: str | None = None) -> Collected:
    """Encodes a part: every rank its share, gathered, sorted by id, each id once (samplers pad with repeats).

    view: all other views of the query are withheld, hard captions left out. Features leave autocast in half precision and are scored
    in fp32. Raises DataError where an id is missing.
    """
    rows: list[dict[str, Any]] = []
    terms = StepTerms(objective.loss) if view is None and not set(objective.loss.needs) <= {"label"} else None
    for batch in loaders.part(part):
        if view is not None:
            role = objective.model.query
            batch = {**batch, role: {name: x for name, x in batch[role].items() if name in (view, "mask")}}
        with torch.no_grad(), accelerator.autocast():
            pair = objective.model(batch)
            sides = {"query": pair.query, "target": pair.target}
            if objective.similarity is None:  # nobody asks for the tokens, and a part's may not fit into memory
                sides = {side: Encoding(encoding.features) for side, encoding in sides.items()}
            row: dict[str, Any] = {"ids": batch["id"], "keys": batch["positive_key"]} | sides
            row |= {"label": batch.get("label"), "class_logits": pair.class_logits}
            if "hard_text" in batch and view is None:
                row["hard"] = _hard_margins(objective, batch, pair.query, pair.target)
            if terms is not None:
                terms.add(pair, batch)
        rows.append(on_cpu(row))
    gathered = [row for rank in gather_rows(rows) for row in rank]
    collected = _join(gathered, loaders.parts[part])
    return collected if terms is None else replace(collected, terms=terms.means())


def _hard_margins(objective: nn.Module, batch: dict[str, Any], query: Encoding, target: Encoding) -> dict[str, Tensor]:
    """Own caption's score minus the hard caption's, per hard caption and score: above 0 is a hit."""
    hard = objective.model.encode(objective.model.target, batch["hard_text"])
    row, kind = batch["hard_row"], batch["hard_kind"]
    own = torch.nn.functional.cosine_similarity(query.features.float(), target.features.float(), dim=1)
    other = torch.nn.functional.cosine_similarity(query.features.float()[row], hard.features.float(), dim=1)
    found = {"id": batch["id"][row], "kind": kind, "pooled": own[row] - other}
    if objective.similarity is not None:
        sequence_own = objective.similarity(query, target).diagonal()
        pairs = objective.similarity(query, hard)[row, torch.arange(len(row), device=row.device)]
        found["sequence"] = sequence_own[row] - pairs
        weight = objective.sequence_weight
        found["fused"] = (found["pooled"] + weight * found["sequence"]) / (1 + weight)
    return found


def _join(rows: list[dict[str, Any]], expected: Sequence[int]) -> Collected:
    ids = torch.cat([row["ids"] for row in rows])
    order = ids.sort(stable=True).indices
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = ids[order][1:] != ids[order][:-1]
    order = order[first]
    if ids[order].tolist() != sorted(expected):
        missing = sorted(set(expected) - set(ids.tolist()))
        strange = sorted(set(ids.tolist()) - set(expected))
        raise DataError(f"{len(missing)} samples of the part were not evaluated, the first {missing[:3]}; not of the part: {strange[:3]}")

    def joined(name: str) -> Tensor | None:
        return None if rows[0].get(name) is None else torch.cat([row[name] for row in rows])[order]

    hard = None
    if any("hard" in row for row in rows):
        parts = [row["hard"] for row in rows if "hard" in row]
        hard = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        hard = _each_once(hard)
    return Collected(
        ids[order],
        joined("keys"),
        _join_encodings([row["query"] for row in rows], order),
        _join_encodings([row["target"] for row in rows], order),
        joined("class_logits"),
        joined("label"),
        hard,
    )


def _each_once(hard: dict[str, Tensor]) -> dict[str, Tensor]:
    """One row per (id, kind), in that order: repeats that pad the ranks' batches go."""
    code = hard["id"] * 64 + hard["kind"]
    values, inverse = code.unique(return_inverse=True)
    first = torch.full((len(values),), len(code)).scatter_reduce_(0, inverse, torch.arange(len(code)), "amin")
    return {name: column[first] for name, column in hard.items()}


def _join_encodings(encodings: list[Encoding], order: Tensor) -> Encoding:
    features = torch.cat([encoding.features for encoding in encodings])[order]
    if encodings[0].sequence is None:
        return Encoding(features)
    longest = max(encoding.sequence.shape[1] for encoding in encodings)
    pad = torch.nn.functional.pad
    sequence = torch.cat([pad(e.sequence, (0, 0, 0, longest - e.sequence.shape[1])) for e in encodings])[order]
    masks = [torch.ones(e.sequence.shape[:2], dtype=torch.bool) if e.mask is None else e.mask for e in encodings]
    mask = torch.cat([pad(m, (0, longest - m.shape[1])) for m in masks])[order]
    return Encoding(features, sequence, mask)


def part_losses(objective: nn.Module, collected: Collected, block: int) -> dict[str, float]:
    """Mean loss terms of a part, those that training has: the same for any number of processes, and in every epoch.

    Contrastive and sequence terms are means over blocks of the gathered rows, weighted by rows; block: as many as a training batch
    holds, the last one may be smaller. Class and token terms, which look at one row each, are means over the part's rows.
    """
    shuffled = torch.randperm(len(collected.ids), generator=torch.Generator().manual_seed(0))  # ids are sorted by class: blocks must mix
    device = next(objective.parameters()).device
    sums: dict[str, float] = {}
    for rows in shuffled.split(block):
        with torch.no_grad():
            terms = _block_losses(objective, collected, rows, device)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(rows)
    means = {name: total / len(shuffled) for name, total in sums.items()}
    for name, value in (collected.terms or {}).items():
        means[name] = value
        means["loss_total"] += objective.loss.term_weights.get(name, 0.0) * value
    return means


def _block_losses(objective: nn.Module, collected: Collected, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
    """The terms that training has, of one block: contrastive, class and sequence, and their weighted sum."""
    query, target = rows_of(collected.query, rows, device), rows_of(collected.target, rows, device)
    positives = (collected.keys[rows, None] == collected.keys[rows]).to(device)
    unit = torch.nn.functional.normalize
    terms = dict(objective.score_losses(unit(query.features, dim=1) @ unit(target.features, dim=1).T, positives))
    if collected.terms is None and collected.class_logits is not None and collected.label is not None:
        pair = Pair(query, target, collected.class_logits[rows].to(device))
        for name, value in objective.loss.class_loss(pair, {"label": collected.label[rows].to(device)}).items():
            terms[name] = value
            terms["loss_total"] = terms["loss_total"] + objective.loss.term_weights.get(name, 0.0) * value
    if objective.similarity is not None:
        terms["loss_seq"] = objective.sequence_loss.from_scores(objective.similarity(query, target), positives)["loss_clip"]
        terms["loss_total"] = terms["loss_total"] + objective.ramp * objective.sequence_weight * terms["loss_seq"]
    return terms


def further_columns(dataset: Any, record: Any) -> dict[str, Any]:
    """What else a data set knows of a record, for its row of predictions; a name that the row needs itself gets `meta_` before it."""
    named = dataset.record_columns(record).items()
    return {f"meta_{name}" if name in _OWN or name.startswith(("p_", "rank_")) else name: value for name, value in named}
