"""What a result must carry wherever it is quoted: chosen on its test part, corrected twice, without groups."""

from typing import Any

from mmexpert.data.records import RecordDataset


def stamps(dataset: RecordDataset, selection: str) -> dict[str, Any]:
    """Keys for metrics.json and cv_summary.json; only those that apply.

    optimistic: the reported part chose the checkpoint. over_corrected: class weights act in the sampler and in the loss. groups: the
    user has declared each row its own group.
    """
    found: dict[str, Any] = {}
    if selection == "outer":
        found["optimistic"] = True
    if dataset.balance_settings is not None and dataset.balance_settings.over_corrected:
        found["over_corrected"] = True
    if dataset.groups == "none declared":
        found["groups"] = dataset.groups
    return found


def told(found: dict[str, Any]) -> list[str]:
    """A sentence for each stamp."""
    said = {
        "optimistic": "optimistic: the checkpoints were chosen on the reported test parts (cv.selection=outer)",
        "over_corrected": (
            "over-corrected: class weights act in the sampler and in the loss (dataset.balance.apply=both), so rare classes are "
            "overweighted; sampler, loss or half corrects once"
        ),
        "groups": "no groups declared (dataset.group_column=null): films of one patient, if any, are on both sides of a fold",
    }
    return [said[name] for name in said if found.get(name)]
