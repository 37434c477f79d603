"""What the wheel holds: every package by name, every YAML; and that it trains from elsewhere."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_setup_cfg_names_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = set(setup["options"]["packages"].split())
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mmexpert").rglob("*.py")}
    assert named == folders | {"mmexpert.conf"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_yaml(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    yaml = {f"mmexpert/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(yaml) > 20 and yaml <= names


def test_an_installed_wheel_trains_from_another_folder(wheel, tiny, tmp_path):
    target = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=300
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import mmexpert, mmexpert.config as c; print(mmexpert.__file__, c.CONF_DIR)"],
        cwd=elsewhere, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.count(str(target)) == 2
    command = [sys.executable, "-m", "mmexpert.train", *tiny, "trainer.max_steps=2", "name=wheel"]
    ended = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (next((elsewhere / "outputs/wheel").iterdir()) / "metrics.json").exists()
