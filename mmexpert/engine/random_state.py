"""The random generators of a process as plain containers, so that a stored state loads without unpickling."""

import logging
import random
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)


def capture() -> dict[str, Any]:
    """States of Python's, NumPy's, torch's and, once in use, the current CUDA device's generator: tensors and plain Python only."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        # only this process's device: asking for all of them would open a context on each
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def restore(state: dict[str, Any]) -> None:
    """Puts all generators where capture found them."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    words = numpy_state["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    elif state["cuda"] is not None or (torch.cuda.is_available() and torch.cuda.is_initialized()):
        log.warning("this run began on another type of device: what follows is not equal to a run that was never stopped")


def restart(seed: int, step: int, rank: int) -> None:
    """New streams as a function of seed, step and rank, for a run that continues with another number of processes."""
    word = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(word)
    np.random.seed(word)
    torch.manual_seed(word)
