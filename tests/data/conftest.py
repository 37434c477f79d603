"""Data sets built from their YAML, as a run builds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmexpert.build import build_dataset
from mmexpert.command_line import composed
from mmexpert.data.records import RecordDataset


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions parsed and clips simulated by one test serve the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def build(shared_cache: Path) -> Callable[..., RecordDataset]:
    def build(name: str, **changes: Any) -> RecordDataset:
        cfg = composed(f"dataset={name}")
        OmegaConf.set_struct(cfg, False)
        fixed = {"cache_dir": str(shared_cache), "workers": 1}
        changes = {key: str(value) if isinstance(value, Path) else value for key, value in changes.items()}
        cfg.dataset = OmegaConf.merge(cfg.dataset, {key: value for key, value in fixed.items() if key in cfg.dataset}, changes)
        return build_dataset({"dataset": OmegaConf.to_container(cfg.dataset, resolve=True)})

    return build
