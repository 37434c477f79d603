"""Classification through class texts (score with each class's prompts) or a class head, beside a linear probe of the same features."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmexpert.data.records import Record, RecordDataset
from mmexpert.evaluators.base import Collected, Evaluation, collect, further_columns, part_losses
from mmexpert.evaluators.baselines import linear_probe, nearest_picture
from mmexpert.evaluators.examples import class_examples
from mmexpert.evaluators.probabilities import TEXT_SCALE
from mmexpert.evaluators.scores import check_rank_by, prompt_scores, score_name
from mmexpert.metrics.classification import (
    chance_lines,
    classification_metrics,
    confusion_counts,
    group_rows,
    per_class_rows,
    precision_at,
)
from mmexpert.metrics.statistics import group_bootstrap
from mmexpert.types import ConfigError, NonFiniteError

log = logging.getLogger(__name__)
_PARTS = ("train", "valid", "test", "external")


class ClassificationEvaluator:
    """linear_probe, nearest_neighbour: parts in which these baselines are scored beside (evaluators/baselines.py). prior: as_trained |
    train (log class shares of the training part are added, for models that a sampler has balanced). rank_by: score with text prompts, auto
    (fused where there is a similarity) | pooled | sequence | fused; a linear head's logits have none. seed: of the bootstrap over groups.
    """

    def __init__(self, linear_probe: list[str], nearest_neighbour: list[str], prior: str, rank_by: str, seed: int) -> None:
        check_rank_by(rank_by)
        if prior not in ("as_trained", "train"):
            raise ConfigError(f"evaluator.prior={prior}: choose as_trained or train")
        if seed < 0:
            raise ConfigError(f"evaluator.seed={seed}: 0 or more")
        for name, parts in (("linear_probe", linear_probe), ("nearest_neighbour", nearest_neighbour)):
            if strange := sorted(set(parts) - set(_PARTS)):
                raise ConfigError(f"evaluator.{name}: there is no part {strange[0]!r}; a list of some of {', '.join(_PARTS)}")
        self.linear_probe, self.nearest_neighbour, self.prior = linear_probe, nearest_neighbour, prior
        self.rank_by, self.seed = rank_by, seed
        self._mixed_told: set[str] = set()

    def __call__(self, objective: nn.Module, loaders: Any, accelerator: Any, part: str) -> Evaluation:
        """Encodes the part and reports; objective is the unwrapped module in evaluation mode."""
        dataset = loaders.dataset
        if dataset.classes is None:
            raise ConfigError(f"evaluator=classification: {dataset.name} has no classes; choose evaluator=retrieval")
        chosen = self._score_name(objective.model.head, objective.similarity)
        collected = collect(objective, loaders, accelerator, part)
        if collected.label is None:
            raise KeyError("batch has no 'label'; evaluator=classification needs a data set with classes")
        labels = collected.label.numpy()
        by_texts = prompt_scores(objective, collected, accelerator, by_prompts(objective.model.head) and objective.similarity is not None)
        texts = by_texts.get(chosen)
        probabilities, by = self._probabilities(objective, collected, texts, chosen, loaders)
        records = [dataset.records[i] for i in collected.ids.tolist()]
        groups = [record.group for record in records]
        ordered = dataset.classes.ordered
        metrics: dict[str, Any] = dict(classification_metrics(probabilities, labels, ordered))
        voted, chance = self._grouped(probabilities, labels, groups, part, ordered)
        metrics |= voted
        if texts is not None:
            name = f"{objective.model.target}_to_{objective.model.query}"
            metrics |= {f"{name}_p{k}": precision_at(texts.numpy(), labels, k) for k in (5, 10)}
        metrics |= other_scores(by_texts, chosen, labels)
        if part in self.linear_probe:
            metrics |= linear_probe(collect(objective, loaders, accelerator, "train"), collected)
        if part in self.nearest_neighbour:
            metrics |= nearest_picture(loaders, part)
        metrics |= part_losses(objective, collected, loaders.batch_size)
        names = dataset.classes.names
        protocol = {
            "part": part,
            "dataset": dataset.name,
            "by": by,
            "prior": self.prior,
            "rows": len(labels),
            "groups": len(set(groups)),
            "groups_with_two_labels": group_rows(probabilities, labels, groups)[2],
            "n_classes_used": metrics["n_classes_used"],
            "chance": chance_lines(labels, len(names), ordered) | chance,
            "uncalibrated": chosen != "pooled"
            or collected.class_logits is None
            or not objective.loss.term_weights.get("loss_class", 0) > 0,
        }
        known = {name: value for name, value in metrics.items() if value is not None}
        tables = _tables(probabilities, labels, names)
        direction = f"{objective.model.query}_to_class"
        tables["examples"] = partial(class_examples, dataset, collected.ids.tolist(), probabilities, (texts, chosen), direction)
        return Evaluation(known, protocol, tables, prediction_rows(probabilities, dataset, records))

    def _score_name(self, head: nn.Module | None, similarity: nn.Module | None) -> str:
        """The score with class texts that decides; pooled for logits of another head, which a similarity does not alter."""
        if by_prompts(head):
            return score_name(self.rank_by, similarity)
        if self.rank_by in ("sequence", "fused"):
            raise ConfigError(f"evaluator.rank_by={self.rank_by}: the {head.kind} decides here; choose model/head=text, or rank_by=auto")
        return "pooled"

    def _probabilities(
        self, objective: nn.Module, collected: Collected, texts: Tensor | None, chosen: str, loaders: Any
    ) -> tuple[np.ndarray, str]:
        """Probabilities [n, K] in fp64 and where they come from: the class head, else the chosen score at the head's or the usual scale."""
        head = objective.model.head
        if collected.class_logits is not None and chosen == "pooled":
            logits, by = collected.class_logits.double(), head.kind
        elif texts is not None:
            scale = TEXT_SCALE if head is None else float(head.logit_scale.exp())
            logits, by = texts.double() * scale, "text prompts" if chosen == "pooled" else f"text prompts, {chosen} scores"
        else:
            raise ConfigError("evaluator=classification needs class logits or class texts: choose model/head=text")
        if not bool((finite := torch.isfinite(logits).all(1)).all()):
            bad = [loaders.dataset.records[i].id for i in collected.ids[~finite][:5].tolist()]
            raise NonFiniteError(f"{int((~finite).sum())} rows have class scores that are not finite, the first: {', '.join(bad)}")
        if self.prior == "train":
            trained = [loaders.dataset.records[i].label for i in loaders.parts["train"]]
            shares = torch.bincount(torch.tensor(trained), minlength=logits.shape[1]).double() / len(trained)
            logits = logits + shares.clamp(min=1e-12).log()
        return torch.softmax(logits, 1).numpy(), by

    def _grouped(
        self, probabilities: np.ndarray, labels: np.ndarray, groups: Sequence[str], part: str, ordered: bool
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Interval of acc over groups and the metrics of one vote a group (group_...); and the chance lines of these."""
        hit = (probabilities.argmax(1) == labels).astype(float)
        low, high = group_bootstrap([(groups, labels)], lambda _, rows: float(hit[rows].mean()), self.seed)
        means, truth, mixed = group_rows(probabilities, labels, groups)
        if mixed and part not in self._mixed_told:
            self._mixed_told.add(part)
            log.warning("%s part: %d groups hold two labels and are left out of group_...", part, mixed)
        votes = classification_metrics(means, truth, ordered) if len(truth) else {}
        chance = chance_lines(truth, probabilities.shape[1], ordered) if len(truth) else {}
        # one group a class leaves nothing to draw: no width would read as certainty
        interval = {"acc_lo": low, "acc_hi": high} if low < high else {}
        voted = interval | {f"group_{name}": value for name, value in votes.items()}
        return voted, {f"group_{name}": value for name, value in chance.items()}


def by_prompts(head: nn.Module | None) -> bool:
    """Whether cosines with class texts alone decide: without a head, or with one that only scales them."""
    return head is None or head.texts_alone


def other_scores(by_texts: dict[str, Tensor], chosen: str, labels: np.ndarray) -> dict[str, float]:
    """SCORE_acc, SCORE_balanced_acc of the scores that were not chosen, so that the gain of a similarity is seen."""
    found = {}
    for name, scores in by_texts.items():
        if name != chosen:
            metrics = classification_metrics(torch.softmax(scores.double() * TEXT_SCALE, 1).numpy(), labels)
            found |= {f"{name}_{key}": metrics[key] for key in ("acc", "balanced_acc")}
    return found


def _tables(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    counts = confusion_counts(probabilities.argmax(1), labels, len(names))
    return {
        "confusion": [{"truth": name, **dict(zip(names, row.tolist(), strict=True))} for name, row in zip(names, counts, strict=True)],
        "per_class": per_class_rows(probabilities, labels, names),
    }


def prediction_rows(probabilities: np.ndarray, dataset: RecordDataset, records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row a sample. probabilities [n, K]."""
    names = dataset.classes.names
    return [
        {
            "id": record.id,
            "group": record.group,
            "label": names[record.label],
            "predicted": names[row.argmax()],
            **{f"p_{name}": float(p) for name, p in zip(names, row, strict=True)},
            **further_columns(dataset, record),
        }
        for record, row in zip(records, probabilities, strict=True)
    ]
