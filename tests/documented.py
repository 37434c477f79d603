"""Commands and files as the pages for users show them."""

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_OURS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python|torchrun|accelerate launch|srun) (?:.* )?(?:-m mmexpert\.\w|scripts/\w+\.py)")


def documented_commands() -> dict[str, list[str]]:
    """Each command of the pages once: its words joined -> its words."""
    return {" ".join(words): words for page in PAGES for words in commands_of(page.read_text(encoding="utf-8"))}


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of ours in a page: lines of code blocks, and code within a sentence; comments left out."""
    found: list[list[str]] = []
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        fenced ^= line.startswith("```")
        block = fenced or line.startswith("    ")
        for code in [line.strip()] if block else re.findall(r"`([^`]+)`", line):
            for part in re.split(r" (?:&&|\|\||;|\|) ", code):
                if _OURS.match(part.strip()):
                    found.append(shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", part), comments=True))  # [--run]: may be left out
    return found


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Overrides of jobs that together use every value of a multirun."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    values = [
        list(one.sweep_string_iterator()) if one.is_sweep_override() else [text.partition("=")[2]]
        for one, text in zip(parsed, overrides, strict=True)
    ]
    keys = [text.partition("=")[0] for text in overrides]
    return [
        [f"{key}={choices[job % len(choices)]}" for key, choices in zip(keys, values, strict=True)] for job in range(max(map(len, values)))
    ]


def files_of(text: str) -> dict[str, str]:
    """File name -> content, of the code blocks that a line beginning with a file name in backticks introduces."""
    found = {}
    for name, block in re.findall(r"^`([\w/]+\.(?:py|yaml))`[^\n]*:\n\n((?:(?: {4}[^\n]*)?\n)+)", text, flags=re.MULTILINE):
        found[name] = "\n".join(line[4:] for line in block.rstrip().splitlines()) + "\n"
    return found
