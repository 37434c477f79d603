"""A training step: no read of a device value by the host, layers computed again or compiled with the same numbers, refusals."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmexpert.encoders.fusion import Add
from mmexpert.encoders.pooling import Block, Trunk
from mmexpert.encoders.radar import RadarViT
from mmexpert.encoders.text import ScratchText
from mmexpert.encoders.tokenizer import scratch_tokenizer
from mmexpert.engine.accumulate import accumulation
from mmexpert.engine.blocks import prepare_blocks, transformer_blocks
from mmexpert.engine.meter import Meter
from mmexpert.engine.objective import Objective
from mmexpert.engine.progress import Choice, Progress
from mmexpert.engine.runtime import LaunchSettings, Ranks, launch
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.losses.tiling import Tiling
from mmexpert.models.dual_encoder import DualEncoder
from mmexpert.similarity.attention import AttentionHead
from mmexpert.similarity.combined import Combined
from mmexpert.similarity.local import WindowHead
from mmexpert.similarity.temporal import TemporalHead
from mmexpert.types import ConfigError

PACKAGE = Path(__file__).resolve().parents[2] / "mmexpert"
D, ROWS = 16, 4
TEXTS = ["a person walks toward the radar", "someone jumps", "a person sits down slowly", "someone waves twice"]
BERT = {"width": 16, "layers": 2, "heads": 2, "feedforward": 32, "dropout": 0.1, "init_std": 0.02}
READS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "unique_consecutive", "bincount")


class NoReads(TorchDispatchMode):
    """Raises where the host would wait for a device: values read, shapes that depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS:
            raise AssertionError(f"{name}: the host reads a device value")
        if name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise AssertionError(f"{name} by a mask: the host reads its size")
        return function(*args, **(kwargs or {}))


def objective(loss=None, sequence=False):
    torch.manual_seed(0)
    trunk = Trunk(D, 1, 2, 0.1, 8, "attention")
    tower = {"depth": 2, "width": 12, "heads": 2, "dropout": 0.1}
    radar = RadarViT(D, 1.0, Add(D, 0.0), trunk, 16, ["doppler"], tower)
    encoders = {"radar": radar, "text": ScratchText(scratch_tokenizer(TEXTS, 200, 16), D, 1.0, BERT, 200, 16, False)}
    heads = WindowHead(4, 2, 3, 1), AttentionHead(0.1, "both"), TemporalHead("monotone", 0.1, "free", "both")
    weights = {"global": 1.0, "local": 0.5, "attention": 0.3, "temporal": 0.2}
    similarity = Combined(*heads, weights, True, D, True, 0, 2**26) if sequence else None
    make = loss or (lambda: ClipLoss(0.07, True, "out", "both"))
    return Objective(DualEncoder("radar", "text", D, encoders, None, None), make(), similarity, make() if sequence else None, 0.5, 0.0)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(64) < torch.tensor([64, 32, 48, 16])[:, None]
    text = scratch_tokenizer(TEXTS, 200, 16)(TEXTS)
    radar = {"doppler_time": torch.rand(ROWS, 128, 64, generator=generator), "mask": mask}
    return {"radar": radar, "text": text, "positive_key": torch.tensor([0, 1, 1, 2]), "id": torch.arange(ROWS)}


def gradients(module, seed=3):
    module.train()
    torch.manual_seed(seed)
    losses, _ = module(batch())
    losses["loss_total"].backward()
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", ["gradients", "features"])
@pytest.mark.parametrize("tile", ["dense", "store", "recompute"])
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_warm_step_reads_nothing_from_the_device(loss, tile, kind, monkeypatch):
    make = {"clip": lambda: ClipLoss(0.07, True, "out", "both"), "siglip": lambda: SigLipLoss(0.1, True, -10.0, 1.0)}[loss]
    module = objective(make, sequence=True).train()
    module.loss.tile(Tiling(tile))
    for place in ("losses.tiling", "similarity.base"):
        monkeypatch.setattr(f"mmexpert.{place}.free_to_read", lambda _: False)  # as on a GPU
    accelerator = launch(LaunchSettings("cpu", "no", 2, False, 60, None), None, Path("."))
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, fused=True)
    backward, window = accumulation(kind, accelerator, module), [batch(0), batch(1)]
    progress = Progress(Choice(None, 1, None, None, 0.0))
    meter, schedule = Meter(None, None, Ranks(accelerator), accelerator.device, 1000, 8, 8), None  # the next row is far away

    def step():
        for losses, ids in backward(module, module, window):
            progress.add(losses, len(ids))
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        module.clamp_()
        progress.advance(8)
        meter.step(progress, norm, module, schedule)

    step()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with NoReads():
        step()
    assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters() if p.requires_grad)


def test_layers_computed_again_give_the_same_gradients_under_dropout():
    expected, module = gradients(objective()), objective()
    names = list(module.state_dict())
    prepare_blocks(module.model, True, "none")
    assert list(module.state_dict()) == names
    found = gradients(module)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def test_layers_computed_again_keep_their_inputs_alone():
    def kept(module):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            module.train()(batch())
        return sum(sizes)

    plain, module = kept(objective()), objective()
    prepare_blocks(module.model, True, "none")
    assert kept(module) < 0.6 * plain


def test_layers_of_both_towers_are_found_and_frozen_ones_are_not():
    module = objective()
    names = [name for name, _ in transformer_blocks(module.model)]
    assert len(names) == 2 + 1 + 2  # the view's, the trunk's, BERT's
    module.model.encoders["text"].requires_grad_(False)
    assert not any("encoders.text" in name for name, _ in transformer_blocks(module.model))


def test_compiled_layers_give_the_same_numbers(monkeypatch):
    torch.manual_seed(0)
    stack = nn.Module()
    stack.blocks = nn.ModuleList([Block(8, 2, 0.0)])
    tokens, mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    expected, compile_ = stack.blocks[0](tokens, mask), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend="eager"))  # inductor takes tens of seconds
    prepare_blocks(stack, False, "blocks")
    assert stack.blocks[0]._compiled_call_impl is not None
    torch.testing.assert_close(stack.blocks[0](tokens, mask), expected)


def test_where_no_layer_is_a_transformers_the_keys_are_refused():
    with pytest.raises(ConfigError, match="no tower that learns has one"):
        prepare_blocks(nn.Linear(2, 2), True, "none")
    with pytest.raises(ConfigError, match="trainer.compile=graph: choose none or blocks"):
        prepare_blocks(nn.Linear(2, 2), False, "graph")


def test_no_loss_similarity_or_objective_gathers_through_accelerate():
    files = [*(PACKAGE / "losses").glob("*.py"), *(PACKAGE / "similarity").glob("*.py"), PACKAGE / "engine/objective.py"]
    assert len(files) > 10
    for file in files:
        tree = ast.parse(file.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any(name.split(".")[0] == "accelerate" for name in imported), file
        assert not any(isinstance(node, ast.Attribute) and node.attr == "gather_for_metrics" for node in ast.walk(tree)), file


@pytest.mark.parametrize("path", ["engine/loop.py", "engine/accumulate.py", "engine/objective.py", "losses", "similarity"])
def test_the_step_has_no_call_that_the_dispatcher_does_not_see(path):
    files = list((PACKAGE / path).glob("*.py")) if (PACKAGE / path).is_dir() else [PACKAGE / path]
    for file in files:
        for word in (".tolist()", ".numpy()", ".cpu()", ".item()", "bincount("):
            code = "\n".join(line.split("  #")[0] for line in file.read_text().splitlines())
            assert word not in code, f"{file.name}: {word}"
