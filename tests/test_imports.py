"""A file imports only from lower floors, sideways only inside its own folder; design.md has the floors."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "types": 1,
    "encoders": 2,
    "similarity": 2,
    "losses": 2,
    "metrics": 2,
    "data": 2,
    "simulate": 2,
    "models": 3,
    "evaluators": 3,
    "engine": 4,
}
FILES = sorted((ROOT / "mmexpert").rglob("*.py"))


def floor(parts: tuple[str, ...]) -> int:
    if parts[:2] == ("data", "loaders"):
        return 3
    return FLOORS.get(parts[0], 5) if parts else 5


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            found += [(node.lineno, node.module)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_lower_floors_and_its_own_folder(path):
    here = path.relative_to(ROOT / "mmexpert").with_suffix("").parts
    for line, name in imports(path):
        if not name.startswith("mmexpert."):
            continue
        there = tuple(name.split(".")[1:])
        assert floor(there) <= floor(here), f"{path}:{line}: imports upward from {name}"
        if floor(there) == floor(here) < 5:
            assert there[0] == here[0], f"{path}:{line}: imports its sibling {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_hydra_stays_on_the_top_floor_and_accelerate_in_the_engine(path):
    here = path.relative_to(ROOT / "mmexpert").with_suffix("").parts
    for line, name in imports(path):
        library = name.split(".")[0]
        if library in ("hydra", "omegaconf"):
            assert floor(here) == 5, f"{path}:{line}: {library} below the top floor"
        if library == "accelerate":
            assert here[0] == "engine", f"{path}:{line}: accelerate outside engine/"


def test_only_config_calls_hydras_instantiate_and_nothing_unpickles():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT / "mmexpert").as_posix()
        assert "hydra.utils" not in text or name == "config.py", name
        for banned in ("import pickle", "eval(", "weights_only=False", "allow_pickle=True", "trust_remote_code=True", "skip_first_batches"):
            code = text.replace(".eval(", "")
            assert banned not in code, f"{name} holds {banned!r}"
        for banned in (".save_state(", ".load_state(", "register_for_checkpointing"):
            assert banned not in text, f"{name} holds {banned!r}: Accelerate's checkpoints are not exact"
