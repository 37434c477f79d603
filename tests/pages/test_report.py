"""The report: whole without network or script, closed to foreign text, and right in what it says."""

import base64
import html.parser
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from report_runs import HOSTILE, fold_run, hostile_run, retrieval_run, write_json

from mmexpert.report import write_comparison, write_report
from mmexpert.types import RunFolderError

ALONE = {"src", "href", "srcset", "data", "action", "xlink:href", "poster"}  # attributes that fetch
KNOWN = set(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "nav",
        "section",
        "article",
        "figure",
        "figcaption",
        "details",
        "summary",
        "div",
        "span",
        "p",
        "pre",
        "br",
        "i",
    ]
)
KNOWN |= set(
    [
        "h1",
        "h2",
        "h3",
        "a",
        "ol",
        "li",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "img",
        "svg",
        "path",
        "line",
        "rect",
        "circle",
        "text",
    ]
)


class Tags(html.parser.HTMLParser):
    """Names of all elements and attributes, what is fetched, captions of tables, and the text."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.fetched, self.text, self.open = set(), set(), [], [], []
        self.tables, self.captions, self.rows = 0, 0, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes.update(name for name, _ in attributes)
        self.fetched += [value for name, value in attributes if name in ALONE]
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def check_alone(page):
    """Nothing is fetched, nothing runs, every element is one that the pages are made of."""
    tags = Tags(page)
    assert tags.names <= KNOWN, tags.names - KNOWN
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert all(value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")) for value in tags.fetched), tags.fetched
    assert "http:" not in page and "https:" not in page and "url(" not in page and "@import" not in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page and "prefers-color-scheme:dark" in page
    assert tags.tables == tags.captions and len(page.encode()) <= 5_000_000
    return tags


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text_in_every_place_of_a_run(tmp_path, text):
    run = hostile_run(tmp_path / "outputs" / text.replace("/", "_"), text)
    page = write_report(run).read_text(encoding="utf-8")
    tags = check_alone(page)
    assert text not in page
    assert "".join(tags.text).count(text) > 20  # it is there, as text


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text_where_runs_stand_side_by_side(tmp_path, text):
    first, second = (hostile_run(tmp_path / name / text.replace("/", "_"), text) for name in "ab")
    folds = fold_run(tmp_path / "c", text)
    page = write_comparison([first, second, folds], tmp_path / "all.html").read_text(encoding="utf-8")
    assert text in "".join(check_alone(page).text) and text not in page
    assert text in "".join(check_alone(write_report(folds).read_text(encoding="utf-8")).text)


def test_a_run_without_results_still_has_a_report(tmp_path):
    write_json(tmp_path / "config.json", {"config": {}, "overrides": []})
    assert tmp_path.name in write_report(tmp_path).read_text(encoding="utf-8")


def test_recalls_have_wilsons_interval_and_the_chance_line(tmp_path):
    tags = check_alone(write_report(retrieval_run(tmp_path / "run", hits=5, queries=20, gallery=40)).read_text(encoding="utf-8"))
    z, p, n = 1.959963984540054, 0.25, 20
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    row = next(row for row in tags.rows if row[0] == "a to b R@1")
    assert row == ["a to b R@1", "25.0", "", f"{low:.1f} .. {high:.1f}", "2.5"]
    assert "gallery 40" in "".join(tags.text)


def test_runs_of_different_galleries_never_share_a_table(tmp_path):
    runs = [retrieval_run(tmp_path / f"run{n}", gallery=size) for n, size in enumerate((20, 20, 400))]
    page = write_comparison(runs, tmp_path / "out" / "all.html").read_text(encoding="utf-8")
    tables = [table for table in re.findall(r"<table>.*?</table>", page) if "a to b R@1" in table]
    letters = [re.findall(r'scope="row">(\w+)<', table) for table in tables]
    assert letters == [["A", "B", "chance"], ["C", "chance"]]
    assert "gallery 20," in tables[0] and "gallery 400," in tables[1]


def test_side_by_side_only_differing_keys_are_listed_and_curves_share_a_figure(tmp_path):
    runs = [retrieval_run(tmp_path / "x", lr=0.1), retrieval_run(tmp_path / "y", lr=0.2)]
    page = write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8")
    tags = check_alone(page)
    assert ["optimizer.lr", "0.1", "0.2"] in tags.rows and not any(row[0] == "seed" for row in tags.rows)
    training = re.search(r"<figure class=\"chart\"><h3>Training loss.*?</figure>", page)[0]
    assert training.count("<path") == 2


def test_a_value_that_is_missing_is_a_gap_in_the_curve(tmp_path):
    page = write_report(retrieval_run(tmp_path / "run")).read_text(encoding="utf-8")
    train, valid = re.findall(r'<path [^>]*d="([^"]*)"', page)[:2]
    assert train.count("M") == 1 and train.count("L") == 2
    assert valid.count("M") == 2 and valid.count("L") == 0


def test_keys_that_differ_from_the_chosen_options_defaults_are_marked(tmp_path):
    run = retrieval_run(tmp_path / "run")
    config = {"trainer": {"epochs": 3}, "seed": 42, "loss": {"_target_": "mmexpert.losses.siglip.SigLipLoss"}}
    write_json(run / "config.json", {"config": config, "overrides": ["loss=siglip", "trainer.epochs=3"]})
    page = write_report(run).read_text(encoding="utf-8")
    marked = re.findall(r'<tr class=mark><th scope="row"[^>]*>([^<]*)<', page)
    assert marked == ["trainer.epochs"]  # seed is the default, the loss is what loss=siglip means


def test_pictures_are_those_of_the_thumbnails(tmp_path):
    run = retrieval_run(tmp_path / "run")
    grey = np.random.default_rng(0).integers(0, 255, (2, 8, 10), dtype=np.uint8)
    np.savez(run / "thumbnails.npz", doppler_time=grey)
    end = {"id": "a", "text": "t", "picture": 1}
    row = {
        "direction": "a_to_b",
        "rank": 1.0,
        "query": end,
        "results": [{"id": "b", "text": "u", "picture": None, "score": 0.5, "right": True}],
    }
    write_json(run / "examples.json", {"examples": [row], "score": "pooled", "choice": "all", "part": "test"})
    (source,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)"', write_report(run).read_text(encoding="utf-8"))
    import io

    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(source))) as picture:
        shown = np.asarray(picture.convert("L"), float)
    assert np.corrcoef(shown.ravel(), grey[1].ravel())[0, 1] > 0.95  # the palette rises in brightness


def test_a_page_that_would_be_too_large_comes_without_pictures(tmp_path, monkeypatch):
    run = hostile_run(tmp_path / "run", "x")
    assert "<img" in write_report(run).read_text(encoding="utf-8")
    monkeypatch.setattr("mmexpert.pages.run_page.LARGEST", 1000)
    page = write_report(run).read_text(encoding="utf-8")
    assert "<img" not in page and "The pictures are left out" in page


def test_a_run_with_folds_shows_its_means_their_intervals_and_each_fold(tmp_path):
    page = write_report(fold_run(tmp_path / "run")).read_text(encoding="utf-8")
    tags = check_alone(page)
    assert ["balanced acc", "0.500", "", "0.100", "0.310 .. 0.690", "", "0.125", "0.400", "0.600"] in tags.rows
    assert ["fold 2", "done", "3", "2", "", "5"] in tags.rows
    assert page.count("<path") == 2  # a curve a fold


@pytest.mark.parametrize("name", ["metrics.json", "thumbnails.npz", "examples.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    run = hostile_run(tmp_path / "run", "x")
    (run / name).write_bytes(b"{broken")
    with pytest.raises(RunFolderError, match=name):
        write_report(run)


def test_the_command_imports_no_torch_and_names_what_is_no_run(tmp_path):
    run = fold_run(tmp_path / "run")
    code = "import sys; from mmexpert import report; report.main(); assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "report.html") and (run / "report.html").exists()
    wrong = subprocess.run([sys.executable, "-m", "mmexpert.report", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == RunFolderError.exit_code and "is no run folder" in wrong.stderr


def test_the_report_of_a_run_tells_its_command_state_figures_and_examples(tiny_run):
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    stored = json.loads((tiny_run / "metrics.json").read_text())
    check_alone(page)
    assert f"{stored['test/radar_to_text_R@10']:.5g}" in page and "python -m mmexpert.train" in page and "chance" in page
    examples = json.loads((tiny_run / "examples.json").read_text())["examples"]
    assert page.count('<article class="example') == len(examples) == 12
    assert page.count("<img ") > 12 and 'class="square"' in page
    assert (tiny_run / "examples.json").stat().st_size + (tiny_run / "thumbnails.npz").stat().st_size < 1_000_000


@pytest.fixture(scope="session")
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("no Chromium on this machine: apt-get install chromium")


def opened(browser, page, folder):
    """What Chromium makes of a page: its elements after loading, and the lines of its console."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={folder}/u", "--dump-dom"]
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=90)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_chromium_shows_every_row_and_finds_nothing_to_fetch_or_to_complain_of(browser, tiny_run, tmp_path):
    written = (tiny_run / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").write_text(written, encoding="utf-8")
    (tmp_path / "leak.html").write_text(written.replace("</main>", '<img src="http://127.0.0.1:9/leak.png"></main>'), encoding="utf-8")
    dom, console = opened(browser, tmp_path / "report.html", tmp_path)
    expected, shown = Tags(written), Tags(dom)
    assert console == [] and shown.fetched == expected.fetched
    assert shown.tables == expected.tables > 5 and shown.rows == expected.rows and len(shown.rows) > 100
    assert shown.names - {"tbody"} == expected.names - {"tbody"}  # what a parser of HTML adds or throws out would be a fault of the page
    _, console = opened(browser, tmp_path / "leak.html", tmp_path)
    assert len(console) == 1 and "violates" in console[0] and "blocked" in console[0]  # the page's policy, and proof that the log speaks


@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_draws_the_page_within_its_width(browser, tiny_run, tmp_path, width):
    from PIL import Image

    frame = tmp_path / "frame.html"  # a window of Chromium is never narrower than 500 pixels; a frame is
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    frame.write_text(f'<body style="margin:0;background:#f0f"><iframe src="report.html" style="width:{width}px;height:3000px;border:0">')
    picture = tmp_path / "page.png"
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1400,3000",
        f"--user-data-dir={tmp_path}/u",
    ]
    command = [browser, *flags, f"--screenshot={picture}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert picture.exists(), done.stderr
    with Image.open(picture) as opened:
        shown = np.asarray(opened.convert("RGB"))[:3000, :width].astype(int)
    corner = shown[1, 1]
    inked = np.abs(shown - corner).max(2) > 60
    assert inked.any(1).mean() > 0.3  # the page is full of rows that hold something
    assert not inked[:, -3:].any()  # and nothing runs over its edge
    assert picture.stat().st_size > 100_000
