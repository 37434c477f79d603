"""Rows of encodings and batches: on their way between device, CPU and the other ranks."""

from typing import Any

import torch
from torch import Tensor

from mmexpert.types import Encoding


def on_cpu(value: Any) -> Any:
    """Everything in nested dicts and lists on the CPU, fractions as fp32."""
    if isinstance(value, Encoding):
        sequence = None if value.sequence is None else value.sequence.float().cpu()
        return Encoding(value.features.float().cpu(), sequence, None if value.mask is None else value.mask.cpu())
    if isinstance(value, dict):
        return {name: on_cpu(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [on_cpu(inner) for inner in value]
    if isinstance(value, Tensor):
        return value.float().cpu() if value.is_floating_point() else value.cpu()
    return value


def gather_rows(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of every rank, by rank; on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [rows]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return parts


def rows_of(encoding: Encoding, rows: Tensor, device: torch.device) -> Encoding:
    """Some rows of an encoding, on a device."""
    parts = (encoding.features, encoding.sequence, encoding.mask)
    return Encoding(*(None if x is None else x[rows.to(x.device)].to(device) for x in parts))


def taken(value: Any, rows: Tensor, device: torch.device) -> Any:
    """Some rows of everything in nested dicts and lists, on a device."""
    if isinstance(value, dict):
        return {name: taken(inner, rows, device) for name, inner in value.items()}
    if isinstance(value, list):
        return [taken(inner, rows, device) for inner in value]
    if isinstance(value, Encoding):
        return rows_of(value, rows, device)
    return None if value is None else value[rows.to(value.device)].to(device)
