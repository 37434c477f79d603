"""The words of a training's progress: what stands in the line of a step and of an epoch (cross-validation.md section 3)."""

from typing import Any

_SHORT = {"loss": "loss_total", "cls": "loss_class", "clip": "loss_clip", "tok": "loss_token", "seq": "loss_seq"}
_PARTS = {"Class": "loss_class", "Contrastive": "loss_clip", "Token": "loss_token", "Sequence": "loss_seq"}
_SHARES = {"map": "mAP", "balanced_acc": "balanced Acc"}  # metrics that are fractions, shown in percent; the others are shown as they are


def terms(means: dict[str, float]) -> str:
    """`loss=2.6845, cls=1.5028, clip=1.1816, acc=12.25%` of what there is: losses to 4 decimals, accuracy in percent to 2."""
    parts = [f"{short}={means[key]:.4f}" for short, key in _SHORT.items() if key in means]
    return ", ".join(parts + ([f"acc={100 * means['acc']:.2f}%"] if "acc" in means else []))


def summary(name: str, means: dict[str, float], shown: list[str]) -> str:
    """`Val Loss: 2.7011 (Class: 1.5101, Contrastive: 1.1910), Val Acc: 14.11%, Val mAP: 15.57%`; no brackets around one term alone."""
    parts = [f"{part}: {means[key]:.4f}" for part, key in _PARTS.items() if key in means]
    text = f"{name} Loss: {means['loss_total']:.4f}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
    if "acc" in means:
        text += f", {name} Acc: {100 * means['acc']:.2f}%"
    for key in shown:
        if key in means and key != "acc":
            text += f", {name} {_SHARES[key]}: {100 * means[key]:.2f}%" if key in _SHARES else f", {name} {key}: {means[key]:.2f}"
    return text


def of_part(row: dict[str, Any], part: str) -> dict[str, Any]:
    """The figures of a history row that belong to train or valid, without that prefix."""
    return {name.removeprefix(f"{part}/"): value for name, value in row.items() if name.startswith(f"{part}/") and value is not None}
