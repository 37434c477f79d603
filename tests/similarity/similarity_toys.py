"""Ragged token sequences for the tests of similarities."""

import torch

from mmexpert.types import Encoding

DIM = 8


def ragged(lengths: list[int], seed: int, width: int | None = None, dim: int = DIM) -> Encoding:
    """Random sequences of these lengths, padded to width with zeros."""
    generator = torch.Generator().manual_seed(seed)
    longest = width or max(lengths)
    sequence = torch.randn(len(lengths), longest, dim, generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Encoding(torch.zeros(len(lengths), dim), sequence * mask[..., None], mask)


def blocks(length: int, parts: int, dim: int = DIM) -> torch.Tensor:
    """length tokens in parts of equal size, each part its own axis: [length, dim]."""
    return torch.eye(dim)[torch.arange(length) * parts // length]


def one(encoding: Encoding, row: int) -> Encoding:
    """A row alone, without its pads."""
    length = int(encoding.mask[row].sum())
    return Encoding(encoding.features[row : row + 1], encoding.sequence[row : row + 1, :length], encoding.mask[row : row + 1, :length])
