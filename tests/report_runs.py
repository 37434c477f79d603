"""Run folders written by hand for the tests of pages, with any text in every place where foreign text can stand."""

import json
from pathlib import Path

import numpy as np

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</pre></script></style>", "' onclick='x", "]]><svg onload=x>"]


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def retrieval_metrics(hits: int, queries: int, gallery: int) -> dict[str, object]:
    """metrics.json of one direction with R@1 alone."""
    metrics: dict[str, object] = {"test/a_to_b_R@1": 100 * hits / queries, "test/a_to_b_hits@1": hits, "test/a_to_b_queries": queries}
    metrics |= {"test/a_to_b_gallery": gallery, "best_epoch": 1, "monitor": "valid/RSum"}
    told = {
        "part": "test",
        "dataset": "toy",
        "directions": ["a_to_b"],
        "k": [1],
        "queries": queries,
        "gallery": gallery,
        "ties": "pessimistic",
    }
    return metrics | {"protocol": {"test": told | {"rank_by": "pooled", "chance": {"a_to_b_R@1": 100 / gallery}}}}


def retrieval_run(folder: Path, hits: int = 5, queries: int = 20, gallery: int = 20, lr: float = 0.1) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"config": {"optimizer": {"lr": lr}, "seed": 1}, "overrides": [f"optimizer.lr={lr}"]})
    write_json(folder / "metrics.json", retrieval_metrics(hits, queries, gallery))
    history = [{"epoch": n, "step": n, "train/loss_total": 3.0 - n, "valid/loss_total": None if n == 2 else 3.5 - n} for n in (1, 2, 3)]
    write_json(folder / "history.json", history)
    return folder


def hostile_run(folder: Path, text: str) -> Path:
    """text as caption, class, id, config key and value, command, error, warning, metric, checkpoint name, file name."""
    end = {"id": text, "text": text, "picture": 0}
    row = {"direction": text, "rank": text, "query": end, "results": [end | {"score": 0.5, "right": True}, end | {"score": text}]}
    heat = {"caption": text, "rows": [text, "b"], "columns": ["a", text], "values": [[0.1, None], [0.2, 0.3]]}
    told = {"part": text, "dataset": text, "ties": text, "queries": 3, "gallery": 3, "rank_by": text, "directions": [text], "k": [1, text]}
    metrics = {f"test/{text}_R@1": 50.0, f"test/{text}": 1.0, "best_epoch": 1, "monitor": text, "protocol": {"test": told}}
    fold = folder / "fold_1"
    fold.mkdir(parents=True)
    for place in (folder, fold):
        write_json(place / "config.json", {"config": {"note": text, text: [text]}, "overrides": [text, f"experiment={text}"]})
        write_json(place / "environment.json", {"command": f"python {text}", "versions": {"torch": text, text: "1"}})
        write_json(
            place / "status.json", {"state": text, "error": {"type": text, "message": text}, "resumes": [{"step": 1, "versions": text}]}
        )
        write_json(place / "metrics.json", metrics)
        write_json(place / "data_report.json", {"dataset": text, "warnings": [text]})
        write_json(place / "folds_info.json", {"dataset": {"rows": 3, "classes": {text: 2}}})
        write_json(place / "examples.json", {"score": text, "choice": text, "part": text, "examples": [row], "heat_map": heat})
        write_json(
            place / "history.json", [{"epoch": 1, "train/lr_" + text: 0.1, "valid/loss_total": 1.0, "train/loss_total": 1.0, text: 2.0}]
        )
        np.savez(place / "thumbnails.npz", **{"doppler_time": np.zeros((1, 4, 6), np.uint8), "image": np.zeros((1, 4, 6, 3), np.uint8)})
        quoted = '"' + text.replace('"', '""') + '"'
        (place / "confusion.csv").write_text(f"truth,{quoted}\n{quoted},3\n", encoding="utf-8")
        (place / "per_class.csv").write_text(f"class,n,f1\n{quoted},3,0.5\n", encoding="utf-8")
        (place / "dropped.csv").write_text(f"file,record,reason\n{quoted},{quoted},{quoted}\n", encoding="utf-8")
        (place / "result.txt").write_text(f"WARNING: {text}\n", encoding="utf-8")
        (place / "log.txt").write_text(f"2026-01-01 10:00:00,000 WARNING mmexpert.x: {text}\n", encoding="utf-8")
        (place / "checkpoints" / text.replace("/", "_")).mkdir(parents=True)
    return folder


def fold_run(folder: Path, text: str = "class") -> Path:
    """A run with two folds and a summary."""
    entry = {"mean": 0.5, "sd": 0.1, "folds": [0.4, 0.6], "ci95_corrected": [0.31, 0.69], "ci95_bootstrap": None, "chance": 0.125, "n": 2}
    summary = {"metrics": {"test/balanced_acc": entry, f"test/{text}": entry}, "group_metrics": {}, "headline": "test/balanced_acc"}
    summary |= {
        "folds_done": [1, 2],
        "groups": 9,
        "selection": "inner",
        "warnings": [text],
        "external": {"rows": 0},
        "rows_fingerprint": "f",
    }
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"config": {"seed": 1}, "overrides": []})
    write_json(folder / "cv_summary.json", summary)
    for number in (1, 2):
        (folder / f"fold_{number}").mkdir()
        write_json(folder / f"fold_{number}" / "status.json", {"state": "done", "epoch": 3, "best_epoch": 2, "seconds": 5.0})
        write_json(
            folder / f"fold_{number}" / "history.json", [{"epoch": 1, "train/loss_total": 2.0}, {"epoch": 2, "train/loss_total": 1.0}]
        )
    return folder
