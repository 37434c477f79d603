"""Turns configurations of the source's train_clip.py into `python -m mmexpert.train` lines, with a comment for every choice made.

    python scripts/import_superclip_config.py train_clip_config.json --data-dir single_label_data
    python scripts/import_superclip_config.py --command 'python train_clip.py --data-dir D --use-cv --use-superclip-loss'
    python scripts/import_superclip_config.py train_clip_config.json --data-dir D --run --gpus 0,1
    python scripts/import_superclip_config.py train_clip_config.json --write lines.txt      # bash lines.txt runs them

FILE holds one object or a list; comments and trailing commas are allowed. A fault in any configuration: nothing is printed or run.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from device_queue import Job, run_jobs, table
from relaxed_json import Configuration, Setting, Value, read_configurations
from superclip_keys import KEYS, faults, nearest
from superclip_overrides import Choices, Translation, label_of, translate

from mmexpert.types import ConfigError, StorageError, SweepError

FLAGS = {"--" + key.replace("_", "-"): key for key in KEYS if not key.endswith("_encoder_name")}
FLAGS |= {"--image-encoder": "image_encoder_name", "--text-encoder": "text_encoder_name"}
OWN_FLAGS = ("--data-dir", "--output-dir", "--config-file", "--multi-config")
LOGS = Path("outputs/logs/clip_training")
COMMAND = "--command"
SHOWN_FAULTS = 10


@dataclass
class Command:
    """A train_clip.py line: keys of a configuration, and what it says beside them (OWN_FLAGS -> value)."""

    settings: dict[str, Setting] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)


def read_command(text: str) -> Command:
    """A shell line, continued by backslashes or not. Raises ConfigError with line and nearest known flag."""
    words = [(number, word) for number, line in enumerate(text.splitlines(), 1) for word in _words(line, number)]
    script = next((i for i, (_, word) in enumerate(words) if Path(word).name == "train_clip.py"), None)
    if script is None:
        raise ConfigError(f"{COMMAND}: expected 'python train_clip.py ...', found no train_clip.py")
    for number, word in words[:script]:
        if not Path(word).name.startswith("python"):
            raise ConfigError(f"{_line(number)}: {word!r} before train_clip.py is not understood; leave it out (devices: --run --gpus)")
    command, rest = Command(), words[script + 1 :]
    while rest:
        number, word = rest.pop(0)
        flag, has_value, value = word.partition("=")
        if flag not in FLAGS and flag not in OWN_FLAGS:
            near = nearest(flag, [*FLAGS, *OWN_FLAGS])
            raise ConfigError(f"{_line(number)}: unknown flag {flag!r}; the nearest known flag is {near!r}")
        if not has_value and rest and not rest[0][1].startswith("--"):
            has_value, value = "=", rest.pop(0)[1]
        if flag in OWN_FLAGS:
            if (flag == "--multi-config") == bool(has_value):
                raise ConfigError(f"{_line(number)}: {flag} takes {'no value' if has_value else 'a value'}")
            command.own[flag] = value
        else:
            command.settings[FLAGS[flag]] = Setting(_typed(FLAGS[flag], value if has_value else None), COMMAND, number)
    return command


def _words(line: str, number: int) -> list[str]:
    try:
        return shlex.split(line.rstrip().removesuffix("\\"))
    except ValueError as error:
        raise ConfigError(f"{_line(number)}: {error}") from error


def _line(number: int) -> str:
    return f"{COMMAND}, configuration 1, line {number}"


def _typed(key: str, word: str | None) -> Value:
    """A flag's word as JSON would give it. What does not fit stays a text, for the check of types to name."""
    kind = KEYS[key].kind
    if kind == "switch":
        return {None: True, "true": True, "false": False}.get(word.lower() if word else None, word)
    if word is None or (word.lower() in ("none", "null") and KEYS[key].nullable and "none" not in KEYS[key].words):
        return None
    try:
        return {"whole": int, "number": float, "text": str}[kind](word)
    except ValueError:
        return word


def read_file(path: Path) -> list[Configuration]:
    """The configurations of a file. Raises ConfigError."""
    try:
        return read_configurations(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a JSON list of configurations") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error


def configurations_of(command: Command) -> tuple[list[Configuration], Path]:
    """What a command trains, its flags before its file's keys; and the folder of that file, or the present one. Raises ConfigError."""
    if "--config-file" not in command.own:
        return [Configuration(COMMAND, 1, 1, command.settings)], Path()
    path = Path(command.own["--config-file"])
    read = read_file(path)
    if len(read) > 1 and "--multi-config" not in command.own:
        raise ConfigError(f"{path} holds {len(read)} configurations: add --multi-config to the command to take them all")
    return [replace(one, settings=one.settings | command.settings) for one in read], path.parent


def translations(read: list[Configuration], choices: Choices) -> list[Translation]:
    """All configurations translated; equal names get _2, _3. Raises ConfigError with the first 10 faults and their number."""
    found = [fault for configuration in read for fault in faults(configuration)]
    if found:
        more = f"\nand {len(found) - SHOWN_FAULTS} more; {len(found)} in all" if len(found) > SHOWN_FAULTS else ""
        raise ConfigError("\n".join(found[:SHOWN_FAULTS]) + more)
    labels: list[str] = []
    for configuration in read:
        label = first = label_of(configuration)
        number = 2
        while label in labels:
            label, number = f"{first}_{number}", number + 1
        labels.append(label)
    return [translate(configuration, label, choices) for configuration, label in zip(read, labels, strict=True)]


def text_of(configuration: Configuration, line: Translation) -> str:
    """Comments, then the command on one line; a shell can read it."""
    rows = [f"{configuration.place()}: {line.label}", *line.comments, *[f"warning: {text}" for text in line.warnings]]
    comments = ["# " + " ".join(row.split()) for row in rows]  # a line break inside a value would end the comment
    return "\n".join([*comments, shlex.join(["python", "-m", "mmexpert.train", *line.overrides])]) + "\n"


def arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; ends the program where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="train_clip_config.json")
    parser.add_argument("--command", help="a train_clip.py line in place of FILE; --config-file and --multi-config are followed")
    parser.add_argument("--data-dir", help="DATA_DIR of run_train_clip.sh; single_label_data, as there, where it is not given")
    parser.add_argument("--output-dir", help="OUTPUT_BASE_DIR of run_train_clip.sh; its last part goes into name")
    parser.add_argument("--write", type=Path, metavar="FILE.txt", help="writes what is printed there too")
    parser.add_argument("--run", action="store_true", help=f"starts the lines, one per device at a time; logs in {LOGS}")
    parser.add_argument("--gpus", help="devices of --run, such as 0,1; else each configuration's gpu_id")
    parser.add_argument("--as-source", action="store_true", help="also what the source does wrong: epochs chosen on the reported fold ...")
    parser.add_argument("--precision", choices=["bf16", "fp16"], default="bf16", help="of use_amp; fp16 for cards without bf16")
    given = parser.parse_args(argv)
    if (given.file is None) == (given.command is None):
        parser.error("give FILE or --command, one of them")
    if given.gpus is not None and not given.run:
        parser.error("--gpus belongs to --run")
    devices = given.gpus.split(",") if given.gpus is not None else None
    if devices is not None and (not all(device.isdigit() for device in devices) or len(set(devices)) < len(devices)):
        parser.error(f"--gpus {given.gpus}: expected different numbers, such as 0,1")
    given.gpus = devices
    return given


def imported(given: argparse.Namespace) -> tuple[list[Translation], str]:
    """The translations and the text to print. Raises ConfigError."""
    command = Command() if given.command is None else read_command(given.command)
    read, beside = (read_file(given.file), given.file.parent) if given.command is None else configurations_of(command)
    data_dir = given.data_dir or command.own.get("--data-dir") or "single_label_data"
    output_dir = given.output_dir or command.own.get("--output-dir")
    lines = translations(read, Choices(beside, data_dir, output_dir, given.as_source, given.precision))
    return lines, "\n".join(text_of(configuration, line) for configuration, line in zip(read, lines, strict=True))


def write(path: Path, text: str) -> None:
    """Writes the lines. Raises StorageError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--write {path}: {error.strerror}; choose a file in a folder that is there") from error


def main(argv: list[str]) -> int:
    """Prints, writes and runs what is asked for. Exit status 2: a fault in the configurations, 5: --write failed, 10: a run failed."""
    given = arguments(argv)
    try:
        lines, text = imported(given)
        if given.write:
            write(given.write, text)
    except (ConfigError, StorageError) as error:
        print(f"{type(error).__name__}: {error}\nNothing has been run.", file=sys.stderr)
        return error.exit_code
    print(text, end="", flush=True)
    for line in lines:
        for warning in line.warnings:
            print(f"warning: {line.label}: {warning}", file=sys.stderr)
    if not given.run:
        return 0
    jobs = [Job(line.label, line.overrides, line.device) for line in lines]
    runs = run_jobs(jobs, given.gpus, LOGS)
    print(table(jobs, runs))
    return 0 if len(runs) == len(jobs) and all(run.code == 0 for run in runs) else SweepError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
