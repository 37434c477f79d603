"""The loop itself on toy towers: the sequence term's ramp by optimizer step, its learned numbers in a checkpoint, the clamp."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from toy_towers import D, Model, combined

from mmexpert.engine.accumulate import accumulation
from mmexpert.engine.checkpoint import Checkpoints
from mmexpert.engine.keep_settings import KeepSettings
from mmexpert.engine.loop import FitSettings, fit
from mmexpert.engine.objective import Objective
from mmexpert.engine.progress import Choice
from mmexpert.engine.runtime import LaunchSettings, Ranks, Run, launch
from mmexpert.engine.step_folder import load_weights
from mmexpert.engine.watch import Verdict
from mmexpert.evaluators.base import Collected, part_losses
from mmexpert.losses.siglip import SigLipLoss

EPOCHS, STEPS, MICRO, ROWS = 3, 4, 2, 4  # 3 epochs of 4 steps of 2 micro-batches of 4 rows
RAMP, WEIGHT = 1.5, 0.5
LEARNED = ("sequence_loss.logit_scale", "sequence_loss.logit_bias", "similarity.theta")


def objective():
    torch.manual_seed(0)
    losses = [SigLipLoss(0.1, True, -2.0, 1.0) for _ in range(2)]
    return Objective(Model(dropout=0.2), losses[0], combined(), losses[1], WEIGHT, RAMP).double()


def batch(seed):
    generator = torch.Generator().manual_seed(seed)

    def side(longest):
        mask = torch.arange(longest) < torch.randint(1, longest + 1, (ROWS,), generator=generator)[:, None]
        return {"tokens": torch.randn(ROWS, longest, D, generator=generator, dtype=torch.float64), "mask": mask}

    return {"radar": side(5), "text": side(4), "positive_key": torch.tensor([0, 1, 2, 2]), "id": torch.arange(ROWS)}


class Loaders:
    """Windows that depend on the epoch and the step alone."""

    batch_size, steps_per_epoch = MICRO * ROWS, STEPS

    def train(self, epoch, start):
        return ([batch(100 * epoch + 10 * step + part) for part in range(MICRO)] for step in range(start, STEPS))


class Watch:
    """Sees every micro-batch's losses; asks to stop after a step."""

    def __init__(self, stop_after):
        self.stop_after, self.seen = stop_after, []

    def see(self, ids, losses):
        self.seen.append({name: float(value.detach()) for name, value in losses.items()})

    def agree(self, gradients, progress):
        return Verdict(finite=True, stop=143 if progress.step + 1 == self.stop_after else 0, save=False)

    def guard(self, optimizer, norm):
        """Nothing to guard."""


class Meter:
    """Rows of the epochs, unmeasured."""

    def timed(self, windows):
        return windows

    def step(self, *_):
        """Nothing to tell."""

    def epoch(self, progress, metrics, module, schedule):
        train = {f"train/{name}": value for name, value in progress.epoch_means(lambda x: x).items()}
        return train | {f"valid/{name}": value for name, value in metrics.items()}


def validation(module, loaders, accelerator, part):
    """The losses of one batch that training does not have."""
    given = batch(7)
    with torch.no_grad():
        pair = module.model(given)
    return SimpleNamespace(metrics=part_losses(module, Collected(given["id"], given["positive_key"], pair.query, pair.target), ROWS))


def trained(folder, module=None, kind="gradients", stop_after=None, epochs=EPOCHS):
    """(module, progress, losses of every micro-batch) of a run, from where the folder left off."""
    module = objective() if module is None else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    accelerator = launch(LaunchSettings("cpu", "no", MICRO, False, 60, None), None, folder)
    keep, choice = KeepSettings(2, None, None), Choice(None, 1, None, None, 0.0)
    store = Checkpoints(folder, {"config_hash": "c", "seed": 0}, keep, choice, Ranks(accelerator))
    watch = Watch(stop_after)
    run = Run(accelerator, store, SimpleNamespace(truncate=lambda step: None), watch, Meter())
    backward = accumulation(kind, accelerator, module)
    settings = FitSettings(epochs * STEPS, epochs, 1, math.inf, ("valid/loss_total",), backward)
    progress = fit(module, Loaders(), validation, optimizer, schedule, settings, run)
    return module, progress, watch.seen


def share(losses, part=""):
    """What of the sequence term's weight is in the total."""
    return (losses[f"{part}loss_total"] - losses[f"{part}loss_clip"]) / (WEIGHT * losses[f"{part}loss_seq"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop") / "checkpoints"
    return *trained(folder), folder


def test_the_sequence_terms_weight_grows_by_the_epochs_trained_at_each_optimizer_step(whole, tmp_path):
    _, _, seen, _ = whole
    expected = [min(1.0, step / STEPS / RAMP) for step in range(EPOCHS * STEPS)]
    assert [share(losses) for losses in seen[::MICRO]] == pytest.approx(expected, abs=1e-9)
    assert [share(losses) for losses in seen[1::MICRO]] == pytest.approx(expected, abs=1e-9)  # one window, one weight
    _, _, joined = trained(tmp_path, kind="features", epochs=2)
    assert [share(losses) for losses in joined] == pytest.approx(expected[: 2 * STEPS], abs=1e-9)


def test_every_validation_has_the_whole_weight_and_so_has_the_evaluation_of_stored_weights(whole):
    _, progress, _, folder = whole
    assert [share(row, "valid/") for row in progress.history] == pytest.approx([1.0] * EPOCHS, abs=1e-12)
    fresh = objective()
    assert load_weights(fresh, load_file(folder / "last" / "model.safetensors")) == ([], [])
    found = validation(fresh.eval(), None, None, "valid").metrics
    assert {f"valid/{name}": value for name, value in found.items()}.items() <= progress.history[-1].items()


@pytest.mark.parametrize("stop", [1, 5])  # both within the ramp and within an epoch
def test_a_run_stopped_within_the_ramp_ends_in_the_numbers_of_one_never_stopped(whole, tmp_path, stop):
    module, progress, seen, _ = whole
    with pytest.raises(SystemExit):
        trained(tmp_path, stop_after=stop)
    again, resumed, later = trained(tmp_path)
    assert later == seen[stop * MICRO :] and resumed.history == progress.history
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))


def test_scale_bias_and_head_weights_of_the_sequence_term_learn_are_saved_and_come_back(whole, tmp_path):
    module, _, _, folder = whole
    learned, first = dict(module.named_parameters()), dict(objective().named_parameters())
    stored = load_file(folder / "last" / "model.safetensors")
    changed = objective()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.3)
    back, _, seen = trained(folder, changed)  # a finished run: restored, and nothing left to do
    for name in LEARNED:
        assert not torch.equal(learned[name], first[name]), f"{name} has not moved"
        assert torch.equal(stored[name], learned[name]) and torch.equal(back.get_parameter(name), learned[name])
    assert seen == []


def test_the_loop_clamps_every_scale_after_a_step(tmp_path: Path):
    module = objective()
    with torch.no_grad():
        module.loss.logit_scale.fill_(5.0)
        module.sequence_loss.logit_scale.fill_(-0.5)
    trained(tmp_path, module, epochs=1)
    assert module.scales()["logit_scale"].item() <= 100 + 1e-9
    assert module.scales()["logit_scale_seq"].item() >= 1
