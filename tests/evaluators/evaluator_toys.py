"""A model, a data set and loaders small enough to reckon with: features are rows of tables."""

import contextlib
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from mmexpert.data.sampling import evaluation_draws, hash_order
from mmexpert.engine.objective import Objective
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.types import ClassTable, Encoding, Pair


@dataclass
class ToyRecord:
    id: str
    group: str
    label: int = -1
    item: str = ""


class ToyModel(nn.Module):
    """query and target features are looked up in the batch; prompts [K, D], where there are classes, are parameters."""

    query, target = "radar", "text"

    def __init__(self, prompts=None, head=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.prompt_ids = None if prompts is None else torch.zeros(len(prompts), 1)
        self.prompts = prompts
        self.head = SimpleNamespace(without_loss=lambda: None, kind="text prompts", texts_alone=True) if head else None
        self.encoders = {}

    def forward(self, batch):
        views = [x for name, x in batch["radar"].items() if name != "mask"]
        query = Encoding(self.weight * sum(views), self.weight * batch["sequence"], batch["radar"]["mask"])
        target = self.encode("text", batch["text"])
        return Pair(query, target, 10 * self.class_scores(query) if self.head is not None else None)

    def encode(self, role, inputs):
        rows = inputs["rows"]
        return Encoding(rows, rows[:, None], torch.ones(len(rows), 1, dtype=torch.bool))

    def class_scores(self, query):
        return nn.functional.normalize(query.features, dim=1) @ nn.functional.normalize(self.prompts, dim=1).T


class ToyLoaders:
    """Evaluation batches of one rank, as Loaders gives them: hash order, padded by repeats. tables: {name: [n, ...]} by record."""

    def __init__(self, records, tables, keys=None, batch=4, processes=1, rank=0, classes=None, hard=(), train=()):
        self.dataset = SimpleNamespace(
            name="toy",
            records=records,
            record_columns=lambda record: {},
            classes=classes,
            hard_kinds=("side", "speed"),
            unit_length=1,
            fingerprint=lambda: "0",
        )
        self.parts = {"test": [i for i in range(len(records)) if i not in set(train)], "train": list(train)}
        self.tables, self.keys = tables, torch.arange(len(records)) if keys is None else torch.tensor(keys)
        self.batch_size, self.placed, self.hard = batch, (batch, processes, rank), dict(hard)
        self.lost = None

    def part(self, name):
        rows = self.parts[name]
        order = [rows[i] for i in hash_order([self.dataset.records[i].id for i in rows])]
        for draws in evaluation_draws(order, *self.placed):
            yield self.batch([index for index, _, _ in draws if index != self.lost])

    def batch(self, indices):
        at = torch.tensor(indices)
        views = {name: x[at] for name, x in self.tables.items() if name not in ("text", "hard", "tokens")}
        length = 2 + len(indices) % 2  # padded length differs between batches
        batch = {
            "radar": views | {"mask": torch.ones(len(at), length, dtype=torch.bool)},
            "text": {"rows": self.tables["text"][at]},
            "sequence": at.float().view(-1, 1, 1).expand(-1, length, 3),
            "id": at,
            "positive_key": self.keys[at],
        }
        if "tokens" in self.tables:
            batch["text"] |= {"input_ids": self.tables["tokens"][at], "attention_mask": torch.ones(len(at), self.tables["tokens"].shape[1])}
        if self.dataset.classes is not None:
            batch["label"] = torch.tensor([self.dataset.records[i].label for i in indices])
        flat = [(row, kind, features) for row, i in enumerate(indices) for kind, features in self.hard.get(i, ())]
        if flat:
            batch["hard_text"] = {"rows": torch.stack([features for _, _, features in flat])}
            batch["hard_row"] = torch.tensor([row for row, _, _ in flat])
            batch["hard_kind"] = torch.tensor([kind for _, kind, _ in flat])
        return batch


ACCELERATOR = SimpleNamespace(autocast=contextlib.nullcontext)


def toy_objective(model, similarity=None, classes=False, loss=None):
    """Objective in evaluation mode; classes: with a class term, unless a loss is given."""
    usual = SuperClipLoss(0.07, True, "out", "both", 0.5, 2.0, 0.0, 0.0) if classes else ClipLoss(0.07, True, "out", "both")
    loss = loss or usual
    sequence_loss = None if similarity is None else ClipLoss(0.5, True, "out", "both")
    return Objective(model, loss, similarity, sequence_loss, 0.5, 0).eval()


def plain_records(n, groups=None):
    return [ToyRecord(f"r{i:03d}", f"g{i}" if groups is None else groups[i]) for i in range(n)]


def table(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes_of(names):
    return ClassTable(tuple(names), tuple((name,) for name in names), tuple(1 for _ in names))
