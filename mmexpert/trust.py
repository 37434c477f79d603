"""Which classes a configuration may name: parts of this package, a short list of others, and what the command line trusts."""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Sequence
from typing import Any

from mmexpert.types import ConfigError

PARTS = {
    "encoder": ("mmexpert.encoders",),
    "model": ("mmexpert.models",),
    "combiner": ("mmexpert.models",),
    "similarity": ("mmexpert.similarity",),
    "loss": ("mmexpert.losses",),
    "dataset": ("mmexpert.data", "mmexpert.simulate"),
    "evaluator": ("mmexpert.evaluators", "mmexpert.metrics"),
    "optimizer": ("mmexpert.engine",),
    "scheduler": ("mmexpert.engine",),
    "cv": ("mmexpert.engine",),
    "tracker": ("mmexpert.engine",),
}
"""Config group -> packages whose classes its nodes may name: a foreign config can not put a tracker where an encoder belongs."""

EXACT = (
    {f"torch.optim.{name}" for name in ["AdamW", "Adam", "SGD", "NAdam", "RAdam"]}
    | {
        f"torch.optim.lr_scheduler.{name}"
        for name in ["CosineAnnealingLR", "OneCycleLR", "StepLR", "MultiStepLR", "ExponentialLR", "PolynomialLR", "LinearLR", "ConstantLR"]
    }
    | {
        f"sklearn.model_selection.{name}"
        for name in [
            "KFold",
            "StratifiedKFold",
            "GroupKFold",
            "StratifiedGroupKFold",
            "RepeatedKFold",
            "RepeatedStratifiedKFold",
            "ShuffleSplit",
            "StratifiedShuffleSplit",
            "GroupShuffleSplit",
            "LeaveOneGroupOut",
            "PredefinedSplit",
        ]
    }
)
"""Classes of other libraries that may be named, each checked not to run code of its caller's."""


def check_target(key: str, target: Any, roots: Sequence[str], trust: Sequence[str]) -> None:
    """Raises ConfigError where the class that a key names lies neither below roots or trust, nor is one of EXACT, or can not be had."""
    well_formed = isinstance(target, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target)
    if well_formed and (target in EXACT or _is_part(target, roots, False) or _is_part(target, trust, True)):
        return
    package, why = str(target).split(".")[0], f"it must name a class below {', '.join(roots)}"
    if package == "mmexpert":  # never to be trusted: it is either one of its parts or misspelt
        raise ConfigError(f"{key}={target!r} is refused: {_misspelt(target, roots) if well_formed else why}")
    raise ConfigError(f"{key}={target!r} is refused: {why}; for your own package add trust=[{package}] to the command line")


def _misspelt(target: str, roots: Sequence[str]) -> str:
    """What is wrong with a name of this package, with the modules or classes that there are."""
    from mmexpert.config import suggest

    module, name = target.rsplit(".", 1)
    root = next((root for root in roots if f"{module}.".startswith(f"{root}.")), None)
    if root is None:
        return f"it must name a class below {', '.join(roots)}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        modules = [entry.name for entry in pkgutil.iter_modules(importlib.import_module(root).__path__)]
        return f"there is no module {module}{suggest(module.removeprefix(f'{root}.'), modules)}"
    classes = [own for own, part in vars(found).items() if inspect.isclass(part) and part.__module__ == module and own[0] != "_"]
    return f"{module} has no class {name}{suggest(name, classes)}"


def _is_part(target: str, roots: Sequence[str], functions: bool) -> bool:
    """A prefix test alone has a hole: mmexpert.losses.clip.torch.load begins rightly and is torch.load."""
    module, name = target.rsplit(".", 1)
    if not any(module == root or module.startswith(root + ".") for root in roots):
        return False
    try:
        part = vars(importlib.import_module(module)).get(name)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            return False
        raise ConfigError(f"{target}: {module} is there, but it imports {error.name}, which is not installed") from error
    right_kind = inspect.isclass(part) or (functions and inspect.isfunction(part))
    home = getattr(part, "__module__", "") or ""
    return right_kind and any(home == root or home.startswith(root + ".") for root in roots)


def trusted(argv: Sequence[str]) -> tuple[str, ...]:
    """Packages that the command line trusts (`trust=[mypkg]`): read from the arguments alone, never from a YAML."""
    for argument in argv:
        if argument.startswith("trust="):
            names = tuple(name.strip() for name in argument[6:].strip("[]'\"").split(",") if name.strip())
            for name in names:
                if name.split(".")[0] in sys.stdlib_module_names | {"mmexpert", "torch", "numpy", "hydra", "omegaconf", "transformers"}:
                    raise ConfigError(f"trust=[{name}]: the standard library and dependencies are never trusted as parts")
            return names
    return ()
