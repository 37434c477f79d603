"""Which way a metric is better, by its name. Standard library only: tables of runs need no torch."""

_LOWER = ("nll", "brier", "ece", "_rank", "_loss", "hub_share", "hub_skew", "unreached", "hard_negative", "negative_similarity")


def mode_of(key: str) -> str:
    """min for losses, nll, brier, ece, ranks, hubs and scores of wrong rows, else max.

    The part before the last `/` does not count, nor does `group_` (the same metric of one vote a group).
    """
    name = key.rsplit("/", 1)[-1].removeprefix("group_")
    if name.endswith("effective_rank"):  # a dimension, not a place in a list: 1 is a collapsed model
        return "max"
    return "min" if name.startswith(("loss", "ece")) or name.endswith(_LOWER) else "max"
