"""A tower as a graph that needs no mmexpert: torch.export (.pt2) or ONNX (.onnx), checked against the tower before it gets its name.

Shapes: B rows, dynamic; all else as large as training allowed (T frames, M word pieces): the mask says what is real.
"""

import copy
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmexpert.engine.files import sha256_file, strict_json, write_atomic
from mmexpert.types import ConfigError, MmexpertError

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
PARITY = 1e-4
"""Largest difference of any feature, which are rows of length 1."""
_ONE_FILE = 1_900_000_000  # bytes of weights; an ONNX file takes 2 GiB, what is larger goes into a file beside it


class TowerGraph(nn.Module):
    """An encoder with tensors for inputs, in the order of names, and unit features for output."""

    def __init__(self, encoder: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.names = encoder, tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors of B rows -> [B, D] fp32 of length 1."""
        given = inputs[0] if self.names == ("image",) else dict(zip(self.names, inputs, strict=True))
        return F.normalize(self.encoder(given).features.float(), dim=1)


def check_format(form: str) -> None:
    """Raises ConfigError for a form that there is not, or whose extra is not installed."""
    if form not in SUFFIXES:
        raise ConfigError(f"format={form}: choose one of {', '.join(SUFFIXES)}")
    if form == "onnx" and any(importlib.util.find_spec(name) is None for name in ("onnxscript", "onnxruntime")):
        raise ConfigError("format=onnx needs onnxscript and onnxruntime: pip install 'mmexpert[onnx]', or format=torch")


def export_graph(
    encoder: nn.Module,
    samples: Sequence[tuple[dict[str, Tensor], Tensor]],
    file: Path,
    form: str,
    about: dict[str, object],
) -> float:
    """Writes the graph and file.json, which says what goes in; returns the largest difference from the tower, at most PARITY.

    samples: (inputs by name, features [B, D] that the model itself gives for them); the first, of 2 rows or more, is traced, all are
    compared. about: further entries of file.json. Raises ConfigError where the tower can not be traced, MmexpertError where the graph
    differs: then nothing is written.
    """
    check_format(form)
    inputs = samples[0][0]
    tower = TowerGraph(copy.deepcopy(encoder).cpu().eval(), tuple(inputs))
    temporary = file.with_name(f".tmp-{file.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(tower, inputs, temporary / file.name, form)
        run = _opened(temporary / file.name, form)
        parity = max(float((run(given) - wanted).abs().max()) for given, wanted in samples)
        if not parity <= PARITY:  # NaN too
            raise MmexpertError(f"{file.name} differs from the model by {parity:.2g}, at most {PARITY:g} is allowed: it is not written")
        for path in sorted(temporary.iterdir()):
            os.replace(path, file.parent / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    entries = {name: {"dtype": str(x.dtype).removeprefix("torch."), "shape": ["B", *x.shape[1:]]} for name, x in inputs.items()}
    output = {"features": {"dtype": "float32", "shape": ["B", samples[0][1].shape[1]], "note": "rows of length 1"}}
    content = {"format": form, "inputs": entries, "output": output, "parity": parity, "sha256": sha256_file(file), **about}
    write_atomic(file.with_name(f"{file.name}.json"), strict_json(content, indent=1))
    return parity


def _write(tower: TowerGraph, inputs: dict[str, Tensor], file: Path, form: str) -> None:
    rows = torch.export.Dim("B")
    shapes = {"inputs": tuple({0: rows} for _ in inputs)}
    try:
        with torch.no_grad():
            program = torch.export.export(tower, tuple(inputs.values()), dynamic_shapes=shapes)
            if form == "torch":
                torch.export.save(program, file)
                return
            torch.onnx.export(
                program,
                f=file,
                input_names=list(inputs),
                output_names=["features"],
                dynamo=True,
                external_data=sum(p.numel() * p.element_size() for p in tower.parameters()) > _ONE_FILE,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{file.name}: {type(tower.encoder).__name__} can not be written as format={form}: {first}") from error


def _opened(file: Path, form: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """The written graph as a function of inputs by name: what is compared is the file."""
    if form == "torch":
        module = torch.export.load(file).module()
        return lambda given: module(*given.values()).detach()
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    there = {entry.name for entry in session.get_inputs()}  # what the features do not depend on is cut away
    return lambda given: torch.from_numpy(session.run(["features"], {n: x.numpy() for n, x in given.items() if n in there})[0])
