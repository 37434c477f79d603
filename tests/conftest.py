"""Shared by all tests: no network, few threads, where the real data lies."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes test, pyproject.toml
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # composed_vector, for the tests of several folders
SHARED_DATA = (ROOT / "../shared/data").resolve()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine for no test; loopback (gloo, wandb's service) stays open."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests make no connections: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def shared_data() -> Path:
    """Folder of the real data sets; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not here")
    return SHARED_DATA


TINY = [
    "dataset.train=64",
    "dataset.valid=32",
    "dataset.test=32",
    "trainer.batch_size=16",
    "trainer.num_workers=0",
    "encoder.radar.width=16",
]
"""Overrides of a run that takes seconds: 64 clips, 4 steps an epoch."""


@pytest.fixture(scope="session")
def clip_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests' simulated clips are kept, once for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(clip_cache: Path) -> list[str]:
    """Overrides of a tiny run with the shared cache."""
    return [*TINY, f"dataset.cache_dir={clip_cache}", "model.projection_dim=32", "encoder.text.bert.width=32"]


@pytest.fixture(scope="session")
def tiny_run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    from mmexpert.command_line import composed
    from mmexpert.config import check
    from mmexpert.training import train_run

    folder = tmp_path_factory.mktemp("outputs") / "radar" / "tiny"
    plain = check(composed(*tiny, "trainer.epochs=2"))
    train_run(plain, folder, tiny, ())
    return folder


@pytest.fixture(scope="session")
def save_clip_tokenizer() -> Callable[[Path], int]:
    """Writes CLIP's tokenizer over characters (the real class, a vocabulary without merges) into a folder; returns its size."""

    def save(folder: Path) -> int:
        from transformers import CLIPTokenizer

        letters = "abcdefghijklmnopqrstuvwxyz"
        pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        tokenizer = CLIPTokenizer.from_pretrained(str(folder))
        tokenizer.model_max_length = 20
        tokenizer.save_pretrained(folder)
        return len(pieces)

    return save


@pytest.fixture(scope="session")
def clip_folder(save_clip_tokenizer: Callable[[Path], int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of 2 layers as transformers writes it: configuration, weights, tokenizer, processor."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("models") / "clip"
    folder.mkdir()
    size = save_clip_tokenizer(folder)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=small | {"vocab_size": size, "max_position_embeddings": 20, "eos_token_id": size - 1, "bos_token_id": size - 2},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # transformers' own start leaves all features nearly alike
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers and width 32 with a pooler and a tokenizer of a few words, written as Hugging Face writes it."""
    import torch
    from transformers import BertConfig, BertModel

    from mmexpert.encoders.tokenizer import scratch_tokenizer

    texts = ["a person walks", "someone waves with the left arm, then turns around", "a jump", "walks to the radar"]
    tokenizer = scratch_tokenizer(texts * 2, 300, 24)
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 24}
    BertModel(BertConfig(vocab_size=tokenizer.vocab_size, **small)).save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    return folder
