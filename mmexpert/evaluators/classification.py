"""Classification through class texts (cosine with each class's prompts) or a class head, beside a linear probe of the same features."""

from typing import Any

import numpy as np
import torch
from torch import nn

from mmexpert.evaluators.base import Collected, Evaluation, collect, part_losses
from mmexpert.metrics.classification import chance_lines, classification_metrics, confusion_counts, group_rows, per_class_rows
from mmexpert.metrics.statistics import group_bootstrap
from mmexpert.types import ConfigError


class ClassificationEvaluator:
    """linear_probe: parts in which a logistic regression on the frozen query features of the training part is scored beside. seed: of
    the bootstrap over groups."""

    def __init__(self, linear_probe: list[str], seed: int) -> None:
        self.linear_probe, self.seed = linear_probe, seed

    def __call__(self, objective: nn.Module, loaders: Any, accelerator: Any, part: str) -> Evaluation:
        """Encodes the part and reports; objective is the unwrapped module in evaluation mode."""
        dataset = loaders.dataset
        if dataset.classes is None:
            raise ConfigError(f"evaluator=classification: {dataset.name} has no classes; choose evaluator=retrieval")
        collected = collect(objective, loaders, accelerator, part)
        probabilities, by = class_probabilities(collected)
        labels = collected.label.numpy()
        records = [dataset.records[i] for i in collected.ids.tolist()]
        groups = [record.group for record in records]
        metrics: dict[str, Any] = dict(classification_metrics(probabilities, labels))
        hit = (probabilities.argmax(1) == labels).astype(float)
        low, high = group_bootstrap([(groups, labels)], lambda _, rows: float(hit[rows].mean()), self.seed)
        metrics |= {"acc_lo": low, "acc_hi": high}
        means, truth, mixed = group_rows(probabilities, labels, groups)
        if len(truth):
            votes = classification_metrics(means, truth)
            metrics |= {f"group_{name}": votes[name] for name in ("acc", "balanced_acc")}
        if part in self.linear_probe:
            metrics |= self._probe(objective, loaders, accelerator, collected)
        metrics |= part_losses(objective, collected, loaders.batch_size)
        names = dataset.classes.names
        protocol = {
            "part": part,
            "dataset": dataset.name,
            "by": by,
            "rows": len(labels),
            "groups": len(set(groups)),
            "groups_with_two_labels": mixed,
            "n_classes_used": metrics["n_classes_used"],
            "chance": chance_lines(labels, len(names)),
            "uncalibrated": objective.model.head is not None and "loss_class" not in objective.loss.term_weights,
        }
        counts = confusion_counts(probabilities.argmax(1), labels, len(names))
        tables = {
            "confusion": [{"truth": name, **dict(zip(names, row.tolist(), strict=True))} for name, row in zip(names, counts, strict=True)],
            "per_class": per_class_rows(probabilities, labels, names),
        }
        predictions = [
            {
                "id": record.id,
                "group": record.group,
                "label": names[label],
                "predicted": names[row.argmax()],
                **{f"p_{name}": float(p) for name, p in zip(names, row, strict=True)},
            }
            for record, label, row in zip(records, labels.tolist(), probabilities, strict=True)
        ]
        return Evaluation({name: value for name, value in metrics.items() if value is not None}, protocol, tables, predictions)

    def _probe(self, objective: nn.Module, loaders: Any, accelerator: Any, collected: Collected) -> dict[str, float]:
        """A linear head on the same encoder: logistic regression on standardised features of the training part, not augmented."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        train = collect(objective, loaders, accelerator, "train")
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(train.query.features.numpy(), train.label.numpy())
        predicted, labels = probe.predict(collected.query.features.numpy()), collected.label.numpy()
        recalls = [float((predicted[labels == k] == k).mean()) for k in np.unique(labels)]
        return {"probe_acc": float((predicted == labels).mean()), "probe_balanced_acc": float(np.mean(recalls))}


def class_probabilities(collected: Collected) -> tuple[np.ndarray, str]:
    """Probabilities [n, K] in fp64 and where they come from: the class head, else the cosines at the usual scale of 1 / 0.07."""
    if collected.label is None:
        raise KeyError("batch has no 'label'; evaluator=classification needs a data set with classes")
    if collected.class_logits is not None:
        return torch.softmax(collected.class_logits.double(), 1).numpy(), "class head"
    if collected.class_scores is None:
        raise ConfigError("evaluator=classification needs class logits or class texts: choose model/head=text")
    return torch.softmax(collected.class_scores.double() / 0.07, 1).numpy(), "class texts"
