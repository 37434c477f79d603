"""Class prompts of a frozen text tower: read once, with the values and gradients of reading them each time."""

import copy

import pytest
import torch
from torch import nn

from mmexpert.encoders.base import Encoder
from mmexpert.encoders.clip import ClipText
from mmexpert.encoders.text import ScratchText
from mmexpert.encoders.tokenizer import scratch_tokenizer
from mmexpert.models.dual_encoder import DualEncoder
from mmexpert.models.heads import ClassPrompts, TextHead
from mmexpert.types import ClassTable, Encoding

DIM = 8
CLASSES = ClassTable(("walk", "jump"), (("a person walks", "someone is walking"), ("a jump", "a person jumps up", "hops")), (3, 1))
OTHER = ClassTable(("walk", "jump"), (("someone is walking", "a person walks"), ("hops", "a person jumps up", "a jump")), (3, 1))
TOKENIZER = scratch_tokenizer([text for texts in CLASSES.texts for text in texts], 200, 16)
BERT = {"width": 16, "layers": 1, "heads": 2, "feedforward": 16, "dropout": 0.5, "init_std": 0.02}


class Frames(Encoder):
    """A tower of one linear map."""

    def __init__(self):
        super().__init__(DIM, 1.0)
        self.linear = nn.Linear(4, DIM)

    def forward(self, radar):
        return Encoding(self.linear(radar))


def text_tower(kind, frozen=True):
    if kind == "scratch":
        return ScratchText(TOKENIZER, DIM, 0.5, BERT, 200, 16, frozen)
    keys = {"name": "ViT-B/32", "weights": None, "backend": "auto", "layers": 1, "max_length": 16, "freeze_backbone": frozen}
    return ClipText(tokenizer=TOKENIZER, dim=DIM, lr_scale=1.0, **keys)


def model(kind="scratch", frozen=True, classes=CLASSES):
    torch.manual_seed(0)
    encoders = {"radar": Frames(), "text": text_tower(kind, frozen)}
    return trained(DualEncoder("radar", "text", DIM, encoders, TextHead(0.1, 0.0, CLASSES), ClassPrompts.of(classes, TOKENIZER)))


def trained(module):
    """In training mode, as Objective.train() leaves it."""
    module.train()
    for part in module.encoders["text"].frozen_modules():
        part.eval()
    return module


def reads(module):
    """A list that grows by one whenever the text tower's backbone runs."""
    seen = []
    module.encoders["text"].model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def steps(module, each_time):
    """Three steps, then class scores: losses, gradients of the last step, scores. each_time: the prompts are read at every one."""
    optimizer, losses = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.1), []
    batch = {"radar": torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), "text_index": torch.tensor([4, 0, 4, 1, 2, 3])}
    for _ in range(3):
        if each_time:
            module.frozen_prompts.forget()
        optimizer.zero_grad()
        pair = module(batch)
        loss = (
            pair.class_logits.logsumexp(1).mean()
            + (pair.target.features * pair.query.features).mean()
            + pair.target.sequence.square().mean()
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if each_time:
        module.frozen_prompts.forget()
    with torch.no_grad():
        scores = module.class_scores(pair.query)
    return losses, {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}, scores


@pytest.mark.parametrize("kind", ["scratch", "clip"])
def test_prompts_are_read_once_with_the_numbers_of_reading_them_each_time(kind):
    expected, module = model(kind), model(kind)
    seen, every = reads(module), reads(expected)
    losses, gradients, scores = steps(module, each_time=False)
    plain_losses, plain_gradients, plain_scores = steps(expected, each_time=True)
    assert (len(seen), len(every)) == (1, 4)
    assert losses == plain_losses and len(set(losses)) == 3  # the projection learns on
    assert torch.equal(scores, plain_scores) and gradients.keys() == plain_gradients.keys()
    assert any("text.projection" in name for name in gradients) and not any("text.model" in name for name in gradients)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, plain_gradients[name]), name


def test_what_is_kept_is_not_stored_and_goes_with_a_copy():
    module = model()
    names = list(module.state_dict())
    module.class_texts()
    assert list(module.state_dict()) == names and not any("hidden" in name for name in names)
    other = copy.deepcopy(module)
    assert torch.equal(other.class_texts(), module.class_texts())


def test_other_prompts_or_weights_are_read_anew():
    module, other = model(), model(classes=OTHER)
    first = module.class_texts()
    with torch.no_grad():
        other.encoders["text"].model.embeddings.word_embeddings.weight.mul_(2)
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.class_texts(), other.class_texts()) and not torch.equal(module.class_texts(), first)
    seen = reads(module)
    with torch.no_grad():
        module.encoders["text"].model.embeddings.word_embeddings.weight.mul_(0.5)
    module.class_texts()
    module.class_texts()
    assert len(seen) == 1


def test_under_autocast_the_numbers_are_those_of_autocast():
    module = model()
    full = module.class_texts()
    with torch.autocast("cpu", torch.bfloat16):
        half = module.class_texts()
        module.frozen_prompts.forget()
        assert torch.equal(module.class_texts(), half) and not torch.equal(half, full)
    assert torch.equal(module.class_texts(), full)


def test_what_inference_mode_has_read_can_be_trained_on():
    module = model()
    with torch.inference_mode():
        module.class_texts()
    module.class_texts().sum().backward()
    assert module.encoders["text"].projection.weight.grad is not None


@pytest.mark.parametrize("frozen", [True, False])
def test_a_backbone_that_learns_or_draws_dropout_is_asked_each_time(frozen):
    module = model(frozen=frozen).train()  # of a frozen tower too, against Objective.train()
    seen = reads(module)
    assert not torch.equal(module.class_texts(), module.class_texts()) and len(seen) == 2
