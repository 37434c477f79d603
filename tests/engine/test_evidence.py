"""A NaN is traced to its samples and modules, by every rank alike, and never reaches the weights."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mmexpert.engine.evidence import Evidence, Gradients, clip_gradients
from mmexpert.engine.progress import Choice, Progress
from mmexpert.engine.runtime import Ranks as Processes
from mmexpert.engine.stops import Stops
from mmexpert.engine.watch import Watch, WatchSettings, poll_steps
from mmexpert.types import NonFiniteError


class Ranks:
    """One rank, or a second one that had another step of the same number."""

    def __init__(self, others=()):
        self.rank, self.others = 0, list(others)

    def gather_objects(self, mine):
        return [mine, *self.others]


def watch(folder, nonfinite="stop", budget=1, poll=1, others=()):
    names = [f"img{i:03d}" for i in range(100)]
    evidence = Evidence(folder, Ranks(others), lambda ids: [names[i] for i in ids], lambda: {"logit_scale": 14.3, "lr/image": 1e-3})
    accelerator = Accelerator(cpu=True)
    return Watch(accelerator, WatchSettings(nonfinite, budget, poll, 1000, 1000), lambda: False, evidence, Stops(Processes(accelerator)))


def step(one, number, value=1.0, ids=(4, 7), spoil=None):
    module = nn.ModuleDict({"image": nn.Linear(2, 2), "text": nn.Linear(2, 2)})
    module["image"](torch.ones(1, 2)).sum().backward()
    module["text"](torch.ones(1, 2)).sum().backward()
    if spoil:
        module[spoil].weight.grad[0, 0] = float("inf")
    one.see(torch.tensor(ids), {"loss_clip": torch.tensor(0.5), "loss_total": torch.tensor(value)})
    progress = Progress(Choice(None, 1, None, None, 0.0), step=number - 1)
    return one.agree(clip_gradients(one.accelerator, list(module.named_parameters()), 1.0), progress)


def stored(folder, number):
    return json.loads((folder / f"nonfinite_step_{number}.json").read_text())


def test_clipping_is_torchs_own_to_the_bit_and_norms_are_measured_before():
    torch.manual_seed(0)
    one, other = nn.Linear(3, 5), nn.Linear(3, 5)
    for module in (one, other):
        module.weight.grad, module.bias.grad = torch.arange(15.0).reshape(5, 3), torch.full((5,), 0.1)
    gradients = clip_gradients(Accelerator(cpu=True), list(one.named_parameters()), 0.7)
    assert torch.equal(gradients.total, nn.utils.clip_grad_norm_(other.parameters(), 0.7))
    assert torch.equal(one.weight.grad, other.weight.grad) and torch.equal(one.bias.grad, other.bias.grad)
    assert gradients.names == ["weight", "bias"]
    assert float(gradients.norms[0]) == pytest.approx(sum(i * i for i in range(15)) ** 0.5)


def test_a_loss_that_is_nan_stops_the_run_with_the_ids_the_terms_the_scales_and_the_rates(tmp_path):
    one = watch(tmp_path)
    with pytest.raises(NonFiniteError, match=r"step 6 of epoch 1: loss_clip 0.5, loss_total nan.*nonfinite_step_6.json"):
        step(one, 6, float("nan"))
    content = stored(tmp_path, 6)
    assert content["ranks"] == [
        {"rank": 0, "bad": True, "micro_batches": [{"ids": ["img004", "img007"], "losses": {"loss_clip": 0.5, "loss_total": "nan"}}]}
    ]
    assert (content["logit_scale"], content["lr/image"], content["epoch"]) == (14.3, 1e-3, 1)


def test_an_infinite_gradient_is_found_in_its_module_although_clipping_spreads_it(tmp_path):
    with pytest.raises(NonFiniteError):
        step(watch(tmp_path), 3, spoil="text")
    norms = stored(tmp_path, 3)["grad_norm_by_module"]
    assert norms["text"] == "inf" and 0 < norms["image"] < 10
    assert stored(tmp_path, 3)["grad_norm"] == "inf"


def test_between_two_polls_the_bad_step_is_named_and_not_the_polled_one(tmp_path):
    one = watch(tmp_path, poll=4)
    assert step(one, 1).finite
    assert step(one, 2, float("inf"), ids=(9,)).finite  # nothing is read yet
    assert step(one, 3).finite
    with pytest.raises(NonFiniteError, match="step 2 of epoch 1"):
        step(one, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["nonfinite_step_2.json"]
    assert stored(tmp_path, 2)["ranks"][0]["micro_batches"][0]["ids"] == ["img009"]


def test_a_bad_micro_batch_before_the_windows_last_is_found_too(tmp_path):
    one = watch(tmp_path)
    one.see(torch.tensor([1]), {"loss_total": torch.tensor(float("nan"))})
    with pytest.raises(NonFiniteError):
        step(one, 1, ids=(2,))
    assert [batch["ids"] for batch in stored(tmp_path, 1)["ranks"][0]["micro_batches"]] == [["img001"], ["img002"]]


def test_a_bad_step_of_another_rank_is_told_with_the_ids_of_both(tmp_path):
    theirs = {"step": 1, "epoch": 1, "micro_batches": [{"ids": ["img050"], "losses": {"loss_total": "nan"}}]}
    one = watch(tmp_path, others=[[(True, theirs)]])
    one.bad_since_poll += 1  # as the all-reduce would say
    with pytest.raises(NonFiniteError, match="loss_total nan"):
        step(one, 1)
    assert [(rank["bad"], rank["micro_batches"][0]["ids"]) for rank in stored(tmp_path, 1)["ranks"]] == [
        (False, ["img004", "img007"]),
        (True, ["img050"]),
    ]


def test_under_skip_the_update_is_left_out_until_the_budget_is_spent(tmp_path, caplog):
    one = watch(tmp_path, "skip", budget=2)
    assert not step(one, 1, float("nan")).finite
    assert step(one, 2).finite
    assert not step(one, 3, float("nan")).finite
    with pytest.raises(NonFiniteError):
        step(one, 4, float("nan"))
    assert "update left out, 2 of 2" in caplog.text and "nonfinite_step_3.json" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"nonfinite_step_{n}.json" for n in (1, 3, 4)]


def test_under_skip_a_good_step_is_taken_although_one_since_the_last_poll_was_bad(tmp_path):
    one = watch(tmp_path, "skip", budget=2, poll=2)
    assert step(one, 1, float("nan")).finite  # nothing is read yet: guard() keeps it out on the device
    assert step(one, 2).finite and one.skipped == 1
    step(one, 3)
    assert not step(one, 4, float("nan")).finite and one.skipped == 2


def test_the_last_steps_of_an_epoch_and_of_the_run_are_polled_too():
    settings = WatchSettings("stop", 1, 10, epoch_steps=12, total_steps=17)
    assert [step for step in range(1, 18) if settings.polled(step, (step - 1) % 12 + 1)] == [10, 12, 17]


def overflow(one, number, finite=False):
    one.see(torch.tensor([1]), {"loss_total": torch.tensor(1.0)})
    total = torch.tensor(1.0 if finite else float("inf"))
    return one.agree(Gradients(["weight"], total[None], total), Progress(Choice(None, 1, None, None, 0.0), step=number - 1))


@pytest.mark.parametrize("poll", [1, 10])
def test_twenty_overflows_in_a_row_end_the_run_at_step_20_however_seldom_the_host_looks(tmp_path, poll):
    one = watch(tmp_path, poll=poll)
    one.accelerator.scaler = object()
    for number in range(1, 20):
        assert overflow(one, number).finite
    with pytest.raises(NonFiniteError, match="overflowed 20 times in a row"):
        overflow(one, 20)


@pytest.mark.parametrize("poll", [1, 10])
def test_overflows_with_a_finite_step_between_them_go_on(tmp_path, poll):
    one = watch(tmp_path, poll=poll)
    one.accelerator.scaler = object()
    for number in range(1, 101):
        overflow(one, number, finite=number % 10 == 5)
    assert float(one.overflows) == 5


CPU, GPU = torch.device("cpu"), torch.device("cuda")
OPTIMIZERS = {
    "fused adamw": lambda groups: torch.optim.AdamW(groups, fused=True),
    "fused sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=False),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.1),
    "radam": lambda groups: torch.optim.RAdam(groups, lr=0.1),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "one group fused": lambda groups: torch.optim.Adam([groups[0] | {"fused": True}, groups[1] | {"fused": False}]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_optimizers_whose_kernels_leave_a_bad_update_out_are_polled_seldom(name, caplog):
    optimizer = OPTIMIZERS[name]([{"params": [nn.Parameter(torch.ones(2))]} for _ in range(2)])
    fused = name.startswith("fused")
    assert poll_steps(None, GPU, optimizer) == (10 if fused else 1) and poll_steps(None, CPU, optimizer) == 1
    assert caplog.text == ""
    assert poll_steps(7, CPU, optimizer) == (7 if fused else 1)
    assert ("trainer.poll_every=7 is taken as 1" in caplog.text) is not fused


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_nan_between_two_polls_reaches_no_weight_under_any_optimizer(tmp_path, name):
    weight = nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS[name]([{"params": [weight]}, {"params": [nn.Parameter(torch.ones(1))]}])
    one = watch(tmp_path, "skip", budget=9, poll=poll_steps(4, CPU, optimizer))
    for number in range(1, 9):
        weight.grad = torch.full((2,), float("nan") if number % 4 == 2 else 1.0)
        one.see(torch.tensor([number]), {"loss_total": torch.tensor(1.0)})
        gradients = clip_gradients(one.accelerator, [("weight", weight)], float("inf"))
        verdict = one.agree(gradients, Progress(Choice(None, 1, None, None, 0.0), step=number - 1))
        one.guard(optimizer, gradients.total)
        before = weight.detach().clone()
        if verdict.finite:
            optimizer.step()
        assert torch.isfinite(weight).all() and torch.equal(weight, before) == (number % 4 == 2)
    assert one.skipped == 2
