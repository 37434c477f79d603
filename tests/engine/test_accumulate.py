"""Large batches in pieces: micro-batches and processes against one graph of all rows, in float64, with dropout and ragged tokens."""

import os
from pathlib import Path

import pytest
import torch
from rank_processes import end_rank, run_ranks, this_rank
from torch import distributed as dist
from torch import nn
from toy_towers import D, Model, combined

from mmexpert.engine.accumulate import accumulation
from mmexpert.engine.objective import Objective
from mmexpert.engine.runtime import LaunchSettings, launch
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.losses.superclip import SuperClipLoss
from mmexpert.losses.tiling import Tiling
from mmexpert.types import ConfigError, Encoding, Pair

B, PARTS = 4, 4  # rows of a micro-batch, micro-batches in all: PARTS / N of each process
CASES = {  # loss, tiling, sequence term
    "clip": ("clip", Tiling(), False),
    "clip store": ("clip", Tiling("store"), False),
    "clip recompute": ("clip", Tiling("recompute"), False),
    "clip two exponentials": ("hot", Tiling("store"), False),
    "one way": ("one_way", Tiling("recompute"), False),
    "siglip": ("siglip", Tiling(), False),
    "siglip rows": ("siglip", Tiling("store", "rows"), False),
    "siglip ring": ("siglip", Tiling("store", "ring"), False),
    "class loss": ("superclip", Tiling(), False),
    "clip and sequence terms": ("clip", Tiling("store"), True),
    "siglip and sequence terms": ("siglip", Tiling(), True),
}
LOSSES = {
    "clip": lambda: ClipLoss(0.07, True, "out", "both"),
    "hot": lambda: ClipLoss(0.011, True, "out", "both"),
    "one_way": lambda: ClipLoss(0.07, True, "out", "query"),
    "siglip": lambda: SigLipLoss(0.1, True, -2.0, 1.5),
    "superclip": lambda: SuperClipLoss(0.07, True, "out", "both", 0.7, 1.3, 0.1, 2.0),
}


def objective(case):
    torch.manual_seed(0)
    loss, tiling, sequence = CASES[case]
    similarity, sequence_loss = (combined(), LOSSES[loss]()) if sequence else (None, None)
    built = Objective(Model(0.3, loss == "superclip"), LOSSES[loss](), similarity, sequence_loss, 0.5, 0.0).double()
    built.loss.tile(tiling)
    return built


def micro_batch(number):
    """Rows of one micro-batch: keys repeated in it and across others, tokens as long as its own longest."""
    generator = torch.Generator().manual_seed(number)

    def side(longest):
        lengths = torch.randint(1, longest + 1, (B,), generator=generator)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return {"tokens": torch.randn(B, mask.shape[1], D, generator=generator, dtype=torch.float64), "mask": mask}

    return {
        "radar": side(6),
        "text": side(5),
        "positive_key": torch.tensor([0, 10 * number + 1, 10 * number + 2, number // 2 + 100]),
        "label": torch.randint(0, 3, (B,), generator=generator),
        "weight": torch.rand(B, generator=generator, dtype=torch.float64) + 0.1,
        "id": torch.arange(B) + B * number,
    }


def undivided(case, processes):
    """One graph of all rows: the towers run over the same micro-batches under the same random numbers, everything is kept."""
    module, pairs, share = objective(case).train(), [], PARTS // processes
    for number in range(PARTS):
        if number % share == 0:
            torch.manual_seed(1000 + number // share)
        pairs.append(module.model(micro_batch(number)))

    def whole(encodings):
        longest = max(e.sequence.shape[1] for e in encodings)
        sequence = torch.zeros(B * PARTS, longest, D, dtype=torch.float64)
        mask = torch.zeros(B * PARTS, longest, dtype=torch.bool)
        for number, e in enumerate(encodings):
            sequence[number * B : (number + 1) * B, : e.sequence.shape[1]] = e.sequence
            mask[number * B : (number + 1) * B, : e.sequence.shape[1]] = e.mask
        return Encoding(torch.cat([e.features for e in encodings]), sequence, mask)

    logits = torch.cat([pair.class_logits for pair in pairs]) if pairs[0].class_logits is not None else None
    batch = {name: torch.cat([micro_batch(i)[name] for i in range(PARTS)]) for name in ("positive_key", "label", "weight")}
    module.loss.tile(Tiling("dense"))
    losses, _ = module.terms(Pair(whole([p.query for p in pairs]), whole([p.target for p in pairs]), logits), batch)
    losses["loss_total"].backward()
    return numbers(module, losses)


def in_pieces(case, processes, rank):
    """What accumulate=features leaves: losses of the step and gradients."""
    module, share = objective(case).train(), PARTS // processes
    accelerator = launch(LaunchSettings("cpu", "no", share, False, 60, None), None, Path("."))
    wrapped = accelerator.prepare(module)
    torch.manual_seed(1000 + rank)
    window = [micro_batch(number) for number in range(rank * share, (rank + 1) * share)]
    ((losses, ids),) = accumulation("features", accelerator, module)(wrapped, module, window)
    assert len(ids) == share * B and accelerator.sync_gradients
    return numbers(module, losses)


def numbers(module, losses):
    found = {name: value.detach() for name, value in losses.items() if name in ("loss_clip", "loss_seq", "loss_class", "loss_total")}
    return found | {name: p.grad for name, p in module.named_parameters()}


def check(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] is not None, f"{name} has no gradient"
        error = float((found[name] - value).norm() / value.norm())
        assert error <= 1e-12, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_give_every_gradient_of_the_undivided_batch_with_dropout(case):
    check(in_pieces(case, 1, 0), undivided(case, 1))


def worker(rank, processes, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    found = {}
    for case in CASES:
        found[case] = in_pieces(case, processes, rank)
        for name in [name for name in found[case] if name.startswith("loss_")]:
            mean = found[case][name].clone()
            dist.all_reduce(mean)
            found[case][name] = mean / processes
    if rank == 0:
        torch.save(found, folder / "found.pt")
    end_rank()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    folder, processes = tmp_path_factory.mktemp("ranks"), request.param
    run_ranks(__file__, processes, folder)
    return processes, torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_processes_of_micro_batches_give_every_gradient_of_the_undivided_batch(case, ranks):
    processes, found = ranks
    check(found[case], undivided(case, processes))


def test_the_random_state_after_a_step_is_that_of_having_encoded_once():
    in_pieces("clip", 1, 0)
    after = torch.rand(3)
    undivided("clip", 1)
    assert torch.equal(after, torch.rand(3))


def test_a_tower_that_gives_other_numbers_the_second_time_is_named():
    module = objective("clip").train()
    encode, calls = module.model.encoders["text"].forward, []

    def moody(side):
        calls.append(side)
        encoding = encode(side)
        return Encoding(encoding.features * len(calls), encoding.sequence, encoding.mask)

    module.model.encoders["text"].forward = moody
    accelerator = launch(LaunchSettings("cpu", "no", 2, False, 60, None), None, Path("."))
    with pytest.raises(RuntimeError, match="target features of a micro-batch differ by .* when encoded again"):
        list(accumulation("features", accelerator, module)(module, module, [micro_batch(0), micro_batch(1)]))


def test_batch_norm_is_refused_by_name_unless_frozen_and_unknown_kinds_too():
    module = objective("clip")
    module.model.encoders["text"].norm = nn.BatchNorm1d(D)
    with pytest.raises(ConfigError, match="model.encoders.text.norm is a batch norm"):
        accumulation("features", None, module)
    module.model.encoders["text"].frozen_modules = lambda: [module.model.encoders["text"].norm]
    accumulation("features", None, module)
    with pytest.raises(ConfigError, match="accumulate=logits: choose gradients or features"):
        accumulation("logits", None, module)


class FakeScaler:
    """As fp16's: the loss is multiplied once."""

    def scale(self, loss):
        return 1024.0 * loss


def test_a_scaled_loss_scales_every_gradient_once(monkeypatch):
    expected = in_pieces("clip and sequence terms", 1, 0)
    module = objective("clip and sequence terms").train()
    accelerator = launch(LaunchSettings("cpu", "no", PARTS, False, 60, None), None, Path("."))
    monkeypatch.setattr(accelerator, "scaler", FakeScaler())
    torch.manual_seed(1000)
    list(accumulation("features", accelerator, module)(module, module, [micro_batch(number) for number in range(PARTS)]))
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, 1024 * expected[name], rtol=1e-12, atol=0)


if __name__ == "__main__":
    worker(*this_rank())
