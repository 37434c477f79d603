"""The page of one run, and the page of several side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmexpert.pages.histories import joint_charts, run_charts
from mmexpert.pages.markup import page, section, table, text
from mmexpert.pages.pictures import confusion_table, example_cards, heat_map, per_class_table
from mmexpert.pages.results import fold_tables, result_tables, side_by_side
from mmexpert.pages.settings import checkpoint_tables, config_tables, data_tables, differing_keys, environment_table
from mmexpert.pages.stored import StoredRun

LARGEST = 5_000_000  # bytes of a page


def run_page(run: StoredRun, defaults: Mapping[str, Any] | None) -> str:
    """Everything that the files of a run, or of one of its folds, tell. A page that would be too large comes without pictures."""
    whole = _run_page(run, defaults, True)
    return whole if len(whole.encode()) <= LARGEST else _run_page(run, defaults, False)


def _run_page(run: StoredRun, defaults: Mapping[str, Any] | None, pictures: bool) -> str:
    shown, of_fold = run, ""
    if not run.json("examples.json") and run.folds:  # a run with folds shows the first that has them
        shown = next((fold for fold in run.folds if fold.json("examples.json")), run)
        of_fold = f'<p class="soft">Of {text(shown.label)}.</p>' if shown is not run else ""
    left_out = "" if pictures else '<p class="warn">The pictures are left out: with them the page would exceed 5 MB.</p>'
    cards, heat = example_cards(shown, pictures), heat_map(shown)
    sections = [
        section("Result", _stamps(run), result_tables(run), fold_tables(run)),
        section("Curves", run_charts(run)),
        section("Examples", of_fold + left_out + cards) if cards else "",
        section("Similarity", of_fold + heat) if heat else "",
        section("Classes", confusion_table(run), per_class_table(run)),
        section("Data", data_tables(run)),
        section("Configuration", config_tables(run, defaults)),
        section("Checkpoints", checkpoint_tables(run)),
        section("Environment", environment_table(run)),
    ]
    return page(run.label, _head(run), sections)


def _head(run: StoredRun) -> str:
    status, environment = run.json("status.json"), run.json("environment.json")
    pills = [status.get("state", "not begun")]
    if status.get("epoch"):
        pills.append(f"{status['epoch']} epochs, {status.get('step')} steps")
    best = status.get("best_epoch")
    pills += [f"best epoch {best}"] if best else []
    pills += [f"{status['seconds']:.0f} s"] if isinstance(status.get("seconds"), (int, float)) and status["seconds"] else []
    pills += [f"resumed {len(status['resumes'])} times"] if status.get("resumes") else []
    shown = "".join(f'<span class="state">{text(pill)}</span>' for pill in pills)
    error = status.get("error") or {}
    failed = f'<p class="warn">{text(error.get("type"))}: {text(error.get("message"))}</p>' if error else ""
    command = f"<pre>{text(environment['command'])}</pre>" if environment.get("command") else ""
    return f"<h1>{text(run.label)}</h1><p>{shown}</p>{failed}{command}"


def _stamps(run: StoredRun) -> str:
    """The WARNING lines of result.txt: optimistic, over-corrected, no groups."""
    path = run.folder / "result.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() and not run.summary else []
    return "".join(f'<p class="warn">{text(line.removeprefix("WARNING: "))}</p>' for line in lines if line.startswith("WARNING: "))


def _with_history(run: StoredRun) -> StoredRun:
    """The run itself, or the first fold of a run with folds under its name."""
    fold = next((fold for fold in run.folds if fold.history), None)
    return run if run.history or fold is None else StoredRun(fold.folder, f"{run.label}, {fold.label}", f"{run.short}, {fold.label}")


def comparison_page(runs: Sequence[StoredRun]) -> str:
    """Several runs: where they stand, their figures by gallery, their curves in one figure, the keys in which they differ."""
    rows = []
    for run in runs:
        status, environment = run.json("status.json"), run.json("environment.json")
        commit = (environment.get("git") or {}).get("commit", "")[:10]
        rows.append(
            (run.short, run.label, status.get("state"), status.get("epoch"), status.get("best_epoch"), status.get("seconds"), commit)
        )
    states = table("Where they stand", ("", "run", "state", "epochs", "best epoch", "seconds", "commit"), rows)
    commands = [(run.short, run.json("environment.json").get("command", "")) for run in runs]
    sections = [
        section("Runs", states, table("Commands", ("", "command"), commands)),
        section("Results", side_by_side(runs)),
        section("Curves", joint_charts([_with_history(run) for run in runs])),
        section("Configuration", differing_keys(runs)),
    ]
    return page(f"{len(runs)} runs", f"<h1>{len(runs)} runs side by side</h1>", sections)
