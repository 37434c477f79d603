"""Similarities as their YAML builds them, and ragged token sequences."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # similarity_toys and slow, for the tests beside

from similarity_toys import DIM  # noqa: E402

NAMES = ("global", "local", "attention", "temporal", "combined")
VARIANTS = {"soft_dtw": ("temporal", {"method": "soft_dtw"})}


@pytest.fixture(scope="session")
def build() -> Callable[..., torch.nn.Module]:
    """build(name, key=value, ...): the YAML's similarity with keys changed, for tokens of DIM."""
    from omegaconf import OmegaConf

    from mmexpert.command_line import composed
    from mmexpert.config import check, instantiate

    nodes = {name: check(composed(f"similarity={name}"))["similarity"] for name in NAMES}

    def build(name: str, **changes: Any) -> torch.nn.Module:
        name, variant = VARIANTS.get(name, (name, {}))
        node = OmegaConf.merge(nodes[name], {"dim": DIM}, variant, changes)
        return instantiate(OmegaConf.to_container(node), "similarity")

    return build


@pytest.fixture(params=[*NAMES, *VARIANTS])
def name(request: pytest.FixtureRequest) -> str:
    """Each head in turn."""
    return request.param
