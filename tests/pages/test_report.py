"""report.html: whole without network or script, and closed to foreign text."""

import html.parser
import json

import pytest

from mmexpert.report import write_report

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</pre></script>", "' onclick='x"]


class Tags(html.parser.HTMLParser):
    """Names of all elements, and all attribute names."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes, self.sources = set(), set(), []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes.update(name for name, _ in attributes)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def folder_of(tmp_path, text):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"note": text, text: 1}, "overrides": [text], "config_hash": "x"}))
    (tmp_path / "environment.json").write_text(json.dumps({"command": f"python {text}", "versions": {"torch": text}}))
    (tmp_path / "status.json").write_text(json.dumps({"state": "done", "error": {"message": text}}))
    (tmp_path / "metrics.json").write_text(json.dumps({f"test/{text}": 1.0, "protocol": {"test": {"note": text}}}))
    (tmp_path / "result.txt").write_text(text)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "training_curves.png").write_bytes(b"\x89PNG")
    return tmp_path


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text(tmp_path, text):
    write_report(folder_of(tmp_path, text))
    page = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.names and not {"onerror", "onclick"} & tags.attributes
    assert text not in page
    assert tags.sources and all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page


def test_a_run_without_results_still_has_a_report(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "overrides": [], "config_hash": "x"}))
    write_report(tmp_path)
    assert tmp_path.name in (tmp_path / "report.html").read_text()


def test_the_report_of_a_run_tells_its_command_state_and_figures(tiny_run):
    page = (tiny_run / "report.html").read_text()
    stored = json.loads((tiny_run / "metrics.json").read_text())
    assert f"{stored['test/radar_to_text_R@10']:.5g}" in page and "python -m mmexpert.train" in page and "chance" in page
    assert len(page) < 5_000_000
