"""The table of runs: what differs, how each stands, seeds summed up, and galleries that never share a column."""

import csv
import html
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from mmexpert.sweep import main, table
from mmexpert.sweep_rows import run_rows
from mmexpert.types import ConfigError, RunFolderError

CLIP = {"_target_": "mmexpert.losses.clip.ClipLoss", "temperature": 0.07}
SIGLIP = {"_target_": "mmexpert.losses.siglip.SigLipLoss", "temperature": 0.1, "bias": -10.0}


def write_run(
    folder: Path, config: dict, best: float | None = None, test: dict | None = None, gallery: int = 400, **status: object
) -> Path:
    """A run folder as training leaves it, but for what the table does not read."""
    folder.mkdir(parents=True)
    config = {"seed": 42, "trainer": {"monitor": "valid/RSum", "mode": None, "num_workers": 2}, "loss": CLIP} | config
    (folder / "config.json").write_text(json.dumps({"config": config, "overrides": []}))
    state = {"state": "done", "config_hash": "x", "epoch": 8, "seconds": 12.5} | status
    (folder / "status.json").write_text(json.dumps(state))
    if best is not None:
        sizes = {"test/radar_to_text_gallery": gallery, "test/text_to_radar_gallery": gallery, "valid/radar_to_text_gallery": 500}
        protocol = {"test": {"dataset": "radar_sim", "gallery": gallery}}
        metrics = {f"test/{name}": value for name, value in (test or {}).items()} | sizes
        metrics |= {"monitor": "valid/RSum", "best_value": best, "best_epoch": 3, "protocol": protocol}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def cells(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table by column."""
    lines = [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in text.split("\n\n")[0].splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.fixture
def runs(tmp_path):
    """Two losses, two seeds each; one failed, one killed, one put aside by resume=never."""
    for loss, node, value in (("clip", CLIP, 100.0), ("siglip", SIGLIP, 120.0)):
        for seed in (1, 2):
            test = {"RSum": value - 10 + seed, "radar_to_text_R@1": value / 10}
            write_run(tmp_path / f"loss={loss},seed={seed}", {"loss": node, "seed": seed}, value + seed, test)
    error = {"type": "ConfigError", "message": "trainer.batch_size=1000 | is larger"}
    write_run(
        tmp_path / "big", {"trainer": {"monitor": "valid/RSum", "mode": None, "batch_size": 1000}}, state="failed", epoch=0, error=error
    )
    write_run(tmp_path / "killed", {"seed": 9}, state="running", epoch=2)
    write_run(tmp_path / "loss=clip,seed=1.1", {"seed": 1}, 999.0)
    return tmp_path


def test_columns_are_what_differs_rows_are_sorted_by_the_monitor_and_every_run_is_one(runs):
    rows = cells(table(runs, [], None, None, None))
    assert list(rows[0]) == [
        "loss", "seed", "trainer.batch_size", "state", "epochs", "valid/RSum (radar_sim gallery 500)", "test/RSum (radar_sim gallery 400)",
        "seconds", "error", "folder",
    ]  # fmt: skip
    assert [row["folder"] for row in rows[:4]] == ["loss=siglip,seed=2", "loss=siglip,seed=1", "loss=clip,seed=2", "loss=clip,seed=1"]
    assert {row["folder"]: row["state"] for row in rows[4:]} == {"big": "failed", "killed": "interrupted"}
    assert [row["loss"] for row in rows[:4]] == ["SigLipLoss", "SigLipLoss", "ClipLoss", "ClipLoss"]  # temperature and bias follow from it
    assert rows[0]["valid/RSum (radar_sim gallery 500)"] == "122" and rows[0]["test/RSum (radar_sim gallery 400)"] == "112"


def test_a_key_that_differs_within_a_class_has_a_column_of_its_own(tmp_path):
    for number, temperature in enumerate((0.01, 0.07)):
        write_run(tmp_path / f"{number}", {"loss": CLIP | {"temperature": temperature}})
    write_run(tmp_path / "other", {"loss": SIGLIP})
    rows = {row["folder"]: row for row in cells(table(tmp_path, [], None, None, None))}
    assert rows["0"]["loss.temperature"] == "0.01" and rows["other"]["loss"] == "SigLipLoss" and "loss.bias" not in rows["0"]


def test_keys_that_change_no_number_are_no_columns(tmp_path):
    for number in (0, 2):
        write_run(tmp_path / f"workers{number}", {"trainer": {"monitor": "valid/RSum", "num_workers": number}})
    assert list(cells(table(tmp_path, [], None, None, None))[0]) == ["state", "epochs", "seconds", "folder"]


def test_different_galleries_never_share_a_column(tmp_path):
    write_run(tmp_path / "large", {"dataset": {"test": 400}}, 100.0, {"RSum": 90.0}, gallery=400)
    write_run(tmp_path / "small", {"dataset": {"test": 32}}, 140.0, {"RSum": 150.0}, gallery=32)
    rows = {row["folder"]: row for row in cells(table(tmp_path, ["RSum"], None, None, None))}
    assert rows["large"]["test/RSum (radar_sim gallery 400)"] == "90" and rows["large"]["test/RSum (radar_sim gallery 32)"] == ""
    assert rows["small"]["test/RSum (radar_sim gallery 400)"] == "" and rows["small"]["test/RSum (radar_sim gallery 32)"] == "150"


def test_seeds_are_summed_up_and_nothing_else_is(runs):
    text = table(runs, [], None, None, None).split("mean ± sd over seeds")[1]
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")][2:]
    assert [line[:2] for line in sorted(lines)] == [["ClipLoss", "2"], ["SigLipLoss", "2"]]
    mean, sd = statistics.fmean([101, 102]), statistics.stdev([101, 102])
    assert sorted(lines)[0][2] == f"{mean:.5g} ± {sd:.5g}"


def test_folds_are_a_mean_and_a_count(tmp_path):
    run = write_run(tmp_path / "cv", {"cv": {"n_splits": 3}}, state="running", epoch=0)
    (run / "folds_info.json").write_text(json.dumps({"folds": [{"fold": number} for number in (1, 2, 3)]}))
    for number, value in ((1, 10.0), (2, 20.0)):
        write_run(run / f"fold_{number}", {}, value, {"acc": value / 100}, seconds=5.0)
    (row,) = run_rows(tmp_path)
    assert (row.epochs, row.seconds, row.state, row.folder) == ("2/3 folds", 10.0, "interrupted", "cv")
    assert row.figures["valid/RSum (radar_sim gallery 500, mean of folds)"] == 15.0


def test_losses_are_sorted_upwards_and_any_key_can_sort(runs, tmp_path):
    write_run(runs / "loss", {"trainer": {"monitor": "valid/loss_clip"}, "seed": 77}, 1.0, {"loss_clip": 0.5})
    write_run(runs / "less", {"trainer": {"monitor": "valid/loss_clip"}, "seed": 78}, 1.0, {"loss_clip": 0.25})
    assert [row["folder"] for row in cells(table(runs, ["loss_clip"], "loss_clip", 2, None))] == ["less", "loss"]
    seeds = [int(row["seed"]) for row in cells(table(runs, [], "seed", None, None))]
    assert seeds == sorted(seeds) and len(seeds) == 8
    with pytest.raises(ConfigError, match="did you mean 'test/RSum'"):
        table(runs, [], "test/RSun", None, None)
    with pytest.raises(ConfigError, match="--metric acc: no run below"):
        table(runs, ["acc"], None, None, None)


def test_a_bare_name_means_every_direction_of_the_test_part(runs):
    assert "test/radar_to_text_R@1 (radar_sim gallery 400)" in table(runs, ["R@1"], None, None, None)


def test_the_csv_has_every_figure_in_full_and_the_seeds_and_goes_where_it_is_sent(runs):
    table(runs, [], None, 1, runs / "mine.csv")
    assert not (runs / "sweep.csv").exists()
    rows = list(csv.DictReader((runs / "mine.csv").open(encoding="utf-8")))
    assert len(rows) == 6 + 4 and rows[0]["test/radar_to_text_R@1 (radar_sim gallery 400)"] == "12.0"
    assert [row["state"] for row in rows[6:]] == ["mean of 2 seeds", "sd of 2 seeds"] * 2
    assert rows[-3]["loss"] == "SigLipLoss" or rows[-1]["loss"] == "SigLipLoss"


def test_the_page_escapes_what_runs_are_called_and_names_no_other_place(runs):
    hostile = '<img src=x onerror="alert(1)">'
    write_run(runs / "hostile", {"note": hostile}, state="failed", error={"type": "E", "message": hostile})
    table(runs, [], None, None, None)
    text = (runs / "sweep.html").read_text(encoding="utf-8")
    assert (
        hostile not in text and html.escape(hostile) in text and "default-src 'none'" in text and "http" not in text.replace("http-eq", "")
    )
    assert 'href="loss%3Dsiglip%2Cseed%3D2/report.html"' in text and "mean ± sd over seeds" in text


def test_control_characters_and_bars_can_not_break_the_screens_table(runs):
    write_run(runs / "odd", {}, state="failed", error={"type": "E", "message": "a|b\x1b[2J\nc"})
    text = table(runs, [], None, None, None)
    assert "\x1b" not in text and "a\\|b" in text and len({line.count(" | ") for line in text.split("\n\n")[0].splitlines()}) == 1


def test_a_damaged_run_is_a_row_and_a_folder_without_runs_an_error(runs, tmp_path_factory):
    (runs / "big" / "status.json").write_text("{")
    assert next(row for row in run_rows(runs) if row.folder == "big").state == "damaged"
    with pytest.raises(RunFolderError, match="no run folder"):
        run_rows(tmp_path_factory.mktemp("empty"))


def test_top_says_how_many_rows_it_leaves_out(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep", "table", str(runs), "--top", "2"])
    main()
    assert "4 more rows: leave out --top" in (text := capsys.readouterr().out) and len(cells(text.split("4 more")[0])) == 2
    monkeypatch.setattr(sys, "argv", ["sweep", "table", str(runs / "nothing")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 4 and "RunFolderError" in capsys.readouterr().err


def test_the_table_is_made_without_torch_and_numpy(runs):
    script = "import sys\nfrom mmexpert.sweep import main\nmain()\nprint([m for m in ('torch', 'numpy') if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run([sys.executable, "-c", script, "table", str(runs)], cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and ended.stdout.endswith("[]\n"), ended.stderr
