"""Which way a metric is better, by its name. Standard library only: tables of runs need no torch."""


def mode_of(key: str) -> str:
    """min for losses, nll, brier, ece and ranks, else max; the part before the last `/` does not count."""
    name = key.rsplit("/", 1)[-1]
    if name.endswith("effective_rank"):  # a dimension, not a place in a list: 1 is a collapsed model
        return "max"
    return "min" if name in ("nll", "brier") or name.startswith(("loss", "ece")) or name.endswith(("_rank", "_loss")) else "max"
