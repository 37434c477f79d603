"""Every loss of conf/loss, built as a run builds it."""

from pathlib import Path

import pytest
import torch

CONF = Path(__file__).resolve().parents[2] / "conf" / "loss"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.fixture(scope="session")
def built() -> dict[str, object]:
    """Loss by the name of its YAML, in float64."""
    from mmexpert.command_line import composed
    from mmexpert.config import check, instantiate

    nodes = {name: check(composed(f"loss={name}"))["loss"] for name in NAMES}
    return {name: (lambda node=node: instantiate(node, "loss").double()) for name, node in nodes.items()}


@pytest.fixture(params=NAMES)
def loss(request: pytest.FixtureRequest, built: dict[str, object]) -> torch.nn.Module:
    """A fresh loss for each YAML."""
    return built[request.param]()
