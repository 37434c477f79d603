"""report.html: one self-contained page of a run, made from the files of its folder alone. No script, no network."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from mmexpert.engine.files import write_atomic

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}caption{text-align:left;font-weight:600}
td,th{border:1px solid #8888;padding:.2rem .6rem;text-align:left}img{max-width:100%;background:#fff}pre{overflow-x:auto}"""


def write_report(folder: Path) -> None:
    """Writes report.html of a run folder or of one of its folds. Every value is escaped: captions and names are foreign text."""
    blocks = [f"<h1>{_text(folder.parent.name)} / {_text(folder.name)}</h1>"]
    environment, status = _json(folder / "environment.json"), _json(folder / "status.json")
    if environment:
        blocks.append(f"<pre>{_text(environment['command'])}</pre>")
    if status:
        blocks.append(_table("State", [(key, value) for key, value in status.items() if value not in (None, [], {})]))
    if (folder / "result.txt").exists():
        blocks.append(f"<h2>Result</h2><pre>{_text((folder / 'result.txt').read_text(encoding='utf-8'))}</pre>")
    if (folder / "cv_summary.md").exists():
        blocks.append(f"<h2>Folds</h2><pre>{_text((folder / 'cv_summary.md').read_text(encoding='utf-8'))}</pre>")
    for picture in sorted((folder / "plots").glob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode()
        blocks.append(
            f'<h2>{_text(picture.stem.replace("_", " "))}</h2><img alt="{_text(picture.stem)}" src="data:image/png;base64,{data}">'
        )
    metrics = _json(folder / "metrics.json")
    if metrics:
        rows = [(key, value) for key, value in metrics.items() if key != "protocol"]
        blocks.append(_table("Metrics", rows) + _table("Protocol", list(_flat(metrics.get("protocol", {})))))
    config = _json(folder / "config.json")
    if config:
        blocks.append(_table("Configuration", list(_flat(config["config"]))))
    if environment:
        blocks.append(_table("Environment", list(_flat(environment))))
    names = sorted(path.name for path in (folder / "checkpoints").glob("*") if not path.name.startswith("."))
    if names:
        blocks.append(_table("Checkpoints", [(name, "") for name in names]))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(folder.name)}</title><style>{_STYLE}</style></head><body>{''.join(blocks)}</body></html>"
    )
    write_atomic(folder / "report.html", page)


def _table(caption: str, rows: list[tuple[Any, Any]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<tr><th scope=row>{_text(key)}</th><td>{_text(_short(value))}</td></tr>" for key, value in rows)
    return f"<table><caption>{_text(caption)}</caption>{cells}</table>"


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [row for key, inner in value.items() for row in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
