"""Two processes of batch B are one process of batch 2 B: value and every gradient, in float64, under DDP."""

import pytest
import torch
from rank_processes import end_rank, run_ranks, this_rank
from torch import distributed as dist
from torch import nn

from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.gather import gather
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.models.combiner import GatedCombiner
from mmexpert.models.composed import Composed
from mmexpert.types import Encoding, Pair

B, PROCESSES = 5, 2
LOSSES = {
    "clip": lambda: ClipLoss(0.07, True, "out", "both"),
    "clip_in": lambda: ClipLoss(0.07, True, "in", "both"),
    "clip_one_way": lambda: ClipLoss(0.07, True, "out", "query"),
    "siglip": lambda: SigLipLoss(0.1, True, -2.0, 1.5),
    "superclip": lambda: SuperClipLoss(0.07, True, "out", "both", 0.7, 1.3, 0.1, 2.0),
}


class Toy(nn.Module):
    """Two linear towers, a linear class head and a loss, as an objective has them."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.target, self.head = nn.Linear(6, 8), nn.Linear(7, 8), nn.Linear(8, 3)
        self.loss = LOSSES[name]()
        if name != "superclip":
            self.head = None
        self.double()

    def forward(self, batch):
        query, target = self.query(batch["query"]), self.target(batch["target"])
        terms = self.loss(query, target, batch["keys"], batch["target_keys"])
        pair = Pair(Encoding(query), Encoding(target), None if self.head is None else self.head(query))
        terms |= self.loss.class_loss(pair, batch) if self.head is not None else {}
        return sum(weight * terms[name] for name, weight in self.loss.term_weights.items())


class ComposedToy(nn.Module):
    """The composed model with reference negatives: both pictures pass one linear tower, the query comes out of a Combiner."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        towers = {"image": RowTower(7), "text": RowTower(6)}
        self.model = Composed(8, "both", True, None, towers, GatedCombiner(8, 8, 8, 0.0, None))
        self.loss = LOSSES[name.removeprefix("composed ")]()
        self.double()

    def forward(self, batch):
        pair = self.model(batch)
        return self.loss(pair.query.features, pair.target.features, batch["positive_key"], pair.target_key)["loss_clip"]


class RowTower(nn.Module):
    """A linear tower of width 8."""

    dim = 8

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 8)

    def forward(self, inputs):
        return Encoding(self.linear(inputs))


COMPOSED = {f"composed {name}": name for name in ("clip", "clip_one_way", "siglip")}


def triplets():
    """2 B triplets; a target that both ranks hold, a reference that is a target of the other rank."""
    generator = torch.Generator().manual_seed(2)
    rows = PROCESSES * B
    batch = {name: torch.randn(rows, width, generator=generator, dtype=torch.float64) for name, width in SHAPES.items()}
    return batch | {
        "positive_key": torch.tensor([0, 1, 2, 3, 3, 5, 1, 7, 8, 9]),
        "reference_key": torch.tensor([8, 50, 51, 52, 53, 0, 55, 56, 57, 58]),
    }


SHAPES = {"reference": 7, "target": 7, "text": 6}


def whole_batch(further):
    """2 B rows with a key on both ranks, one repeated in a rank; further target rows of each rank where asked."""
    generator = torch.Generator().manual_seed(1)
    keys = torch.tensor([0, 1, 2, 3, 3, 5, 1, 7, 8, 0])
    rows = len(keys)
    batch = {
        "query": torch.randn(rows, 6, generator=generator, dtype=torch.float64),
        "target": torch.randn(rows, 7, generator=generator, dtype=torch.float64),
        "keys": keys,
        "target_keys": keys,
        "label": torch.randint(0, 3, (rows,), generator=generator),
        "weight": torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1,
    }
    if not further:
        return batch
    own = torch.randn(2 * PROCESSES, 7, generator=generator, dtype=torch.float64)
    return batch | {"target": torch.cat([batch["target"], own]), "target_keys": torch.cat([keys, torch.tensor([90, 1, 92, 93])])}


def share(batch, rank):
    """Rows of a rank; its further target rows stand behind its own."""
    rows = torch.arange(rank * B, (rank + 1) * B)
    extra = torch.arange(PROCESSES * B + rank * 2, PROCESSES * B + rank * 2 + 2)
    extra = extra[extra < len(batch["target"])]
    both = torch.cat([rows, extra])
    return {name: x[both if name.startswith("target") else rows] for name, x in batch.items()}


def numbers(module, loss):
    return {"loss": loss.detach()} | {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


def worker(rank, processes, folder):
    """One of two processes: the losses and what DDP leaves in the gradients, saved by rank 0."""
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    found = {f"{name}/{further}": trained(Toy(name), share(whole_batch(further), rank)) for name in LOSSES for further in (False, True)}
    rows = slice(rank * B, (rank + 1) * B)
    found |= {name: trained(ComposedToy(name), {role: x[rows] for role, x in triplets().items()}) for name in COMPOSED}
    found["refused"] = refused(rank)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    leave()


def leave():
    """Ends the process once all ranks are here, without taking the interpreter apart: gloo's threads abort there now and then."""
    end_rank()


def trained(module, batch):
    """Loss (mean over ranks) and gradients after one backward pass under DDP."""
    wrapped = nn.parallel.DistributedDataParallel(module)  # named: its hooks must outlive the backward pass
    loss = wrapped(batch)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return numbers(module, mean / PROCESSES)


def refused(rank):
    """What unequal rows say; every rank raises, so none waits."""
    try:
        gather(torch.zeros(2 + rank, 3, requires_grad=True))
    except ValueError as error:
        return str(error)
    return "nothing"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gather")
    run_ranks(__file__, PROCESSES, folder)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("further", [False, True], ids=["own rows", "further target rows"])
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_of_b_give_loss_and_every_gradient_of_one_process_of_2b(name, further, found):
    agree(Toy(name), whole_batch(further), found[f"{name}/{further}"])


@pytest.mark.parametrize("name", COMPOSED)
def test_reference_negatives_of_two_processes_are_those_of_one_process_of_2b(name, found):
    agree(ComposedToy(name), triplets(), found[name])


def agree(module, batch, there):
    """One process of 2 B against what two processes found."""
    loss = module(batch)
    loss.backward()
    expected = numbers(module, loss)
    assert set(expected) == set(there)
    for number, value in expected.items():
        assert there[number] is not None, f"{number} has no gradient"
        error = float((there[number] - value).norm() / value.norm())
        assert error <= 1e-10, f"{number}: relative error {error:.1e}"


def test_ranks_with_unequal_rows_are_told_of_all_sizes(found):
    assert found["refused"] == "ranks hold [2, 3] rows: every rank needs as many"


def test_one_process_calls_no_collective(monkeypatch):
    called = []
    for name in ("all_gather", "all_reduce", "all_gather_into_tensor", "all_gather_object", "broadcast", "reduce_scatter"):
        monkeypatch.setattr(dist, name, lambda *_, name=name, **__: called.append(name))
    for name in LOSSES:
        Toy(name)(whole_batch(False)).backward()
    x = torch.zeros(3, 2)
    assert gather(x) is x and called == []


if __name__ == "__main__":
    worker(*this_rank())
