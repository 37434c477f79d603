"""Data sets built from their YAML, as a run builds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmexpert.config import CONF_DIR, instantiate
from mmexpert.data.records import RecordDataset


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions parsed and clips simulated by one test serve the next."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def build(shared_cache: Path) -> Callable[..., RecordDataset]:
    def build(name: str, **changes: Any) -> RecordDataset:
        node = OmegaConf.load(f"{CONF_DIR}/dataset/{name}.yaml")
        if "cache_dir" in node:
            node.cache_dir = str(shared_cache)
        if "workers" in node:
            node.workers = 1
        node = OmegaConf.merge(node, {key: str(value) if isinstance(value, Path) else value for key, value in changes.items()})
        whole = OmegaConf.create({"dataset": node})  # some leaves refer to ${dataset.window}
        return instantiate(OmegaConf.to_container(whole, resolve=True)["dataset"], "dataset")

    return build
