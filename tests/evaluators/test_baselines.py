"""The nearest training picture, against scikit-learn on cells formed by loops."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mmexpert.evaluators.baselines import nearest_picture
from mmexpert.types import ConfigError


class Parts:
    """Batches of two, the last one filled up with rows that came before."""

    def __init__(self, role: str, pictures: torch.Tensor, labels: list[int], train: int) -> None:
        self.role, self.pictures, self.labels = role, pictures, torch.tensor(labels)
        self.rows = {"train": list(range(train)), "test": list(range(train, len(labels)))}

    def part(self, name: str):
        """As Loaders.part."""
        rows = self.rows[name]
        for start in range(0, len(rows), 2):
            ids = torch.tensor((rows[start : start + 2] + rows)[:2])
            yield {self.role: self.pictures[ids], "id": ids, "label": self.labels[ids]}


def test_the_nearest_training_picture_by_standardised_cells_gives_the_class():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (41,), generator=generator).tolist()
    pictures = torch.randn(41, 1, 64, 64, generator=generator) + torch.tensor(labels)[:, None, None, None] * torch.linspace(0, 1, 64)
    pictures = pictures * (1 + torch.rand(41, 1, 1, 1, generator=generator) * 9)  # brightness and contrast must not count
    cells = []
    for picture in pictures[:, 0].numpy():
        means = np.array([[picture[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(32)] for i in range(32)]).ravel()
        cells.append((means - means.mean()) / means.std(ddof=1))
    expected = KNeighborsClassifier(1).fit(cells[:30], labels[:30]).predict(cells[30:])
    truth = np.array(labels[30:])
    got = nearest_picture(Parts("image", pictures, labels, 30), "test")
    assert got["nearest_acc"] == pytest.approx((expected == truth).mean()) and got["nearest_acc"] > 0.4
    assert got["nearest_balanced_acc"] == pytest.approx(np.mean([(expected[truth == k] == k).mean() for k in np.unique(truth)]))


def test_data_without_pictures_is_refused_with_the_key():
    with pytest.raises(ConfigError, match="evaluator.nearest_neighbour needs pictures, batches hold id, label, radar"):
        nearest_picture(Parts("radar", torch.zeros(4, 2), [0, 1, 0, 1], 2), "test")
