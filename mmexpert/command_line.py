"""What stands between the shell and Hydra: quoting of arguments, the run folder's name, errors as messages with exit codes."""

import errno
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

from mmexpert.config import CONF_DIR, NOT_HASHED, suggest
from mmexpert.engine.secrets import SECRET, mask_text
from mmexpert.key_hints import groups, key_hint
from mmexpert.old_flags import RENAMED_FLAGS, refuse_flag
from mmexpert.trust import trusted
from mmexpert.types import ConfigError, MmexpertError, StorageError, SweepError

FREE_KEYS = ("run", "index", "images", "texts", "clips", "image", "text", "clip", "features", "check", "out", "init_from")
"""Keys whose values are paths or sentences: quoted for Hydra's grammar whatever they hold."""

PLUGINS = {
    "hydra/launcher=joblib": "sweep",
    "hydra/launcher=submitit_slurm": "slurm",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/sweeper=optuna": "sweep",
    "hydra/sweeper/sampler=tpe": "sweep",
}
"""Options that Hydra's plugins bring -> the extra of this package that installs them."""

trust_list: list[str] = []
"""What trust=[...] on the command line names; kept out of every config, so that none can widen it."""

_INNER = re.compile(r"[\w.\-]+(?=\s*:\s*[^\s,}\]])")  # keys of {key: value} with a value
_MAX_NAME = 120
_OF_SWEEPS = ("hydra.launcher", "hydra.sweep", "hydra.mode")  # sweeper too; Hydra adds the mode by itself
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # Hydra makes the folder before there is a run


def prepare_arguments(argv: Sequence[str], by_argparse: bool = False) -> list[str]:
    """The arguments as Hydra's grammar can read them. Raises ConfigError for old flags, unknown ones (unless a script reads its own by
    argparse) and literal secrets."""
    for argument, following in zip_longest(argv, argv[1:], fillvalue=""):
        refuse_flag(argument, "" if following.startswith("--") or "=" in following else following, argv, by_argparse)
    return [_prepare(argument) for argument in argv]


def _prepare(argument: str) -> str:
    key, separator, value = argument.partition("=")
    if not separator or argument.startswith("-"):
        return argument
    plain_key = key.lstrip("+~")
    inner = [key for key in _INNER.findall(value) if SECRET.search(key)] if "{" in value else []
    if inner or SECRET.search(plain_key) and value not in ("", "null", "***"):
        full = ".".join([plain_key, *inner[:1]])
        raise ConfigError(f"{full}: a secret does not belong on a command line, which is stored; set it in the environment instead")
    quoted = value[:1] in ("'", '"') and value[-1:] == value[:1]
    bracketed = value[:1] in ("[", "{") or "(" in value
    if quoted or (bracketed and plain_key not in FREE_KEYS):
        return argument
    if plain_key in FREE_KEYS and value not in ("null", "") or "=" in value:
        return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return argument


def run_folder(overrides: Sequence[str]) -> str:
    """Folder name of a run below outputs/<name>: a function of the overrides, whatever their order; 'default' for none."""
    parts = []
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~").split("@")[0]
        dotted = key.replace("/", ".")
        if any(dotted == ignored or dotted.startswith(ignored + ".") for ignored in NOT_HASHED):
            continue
        parts.append(f"{dotted}={re.sub(chr(39) + '|' + chr(34), '', value)}")
    text = ",".join(sorted(parts))
    digest = hashlib.sha256(text.encode()).hexdigest()
    if not text:
        return "default"
    if len(text) > _MAX_NAME:
        return digest[:12]
    clean = re.sub(r"[^\w.,=+\-\[\]~@]", "_", text)
    return clean if clean == text else f"{clean}_{digest[:6]}"


def said_beside(trust: Sequence[str]) -> list[str]:
    """What a run's command holds beside its overrides: trust= and what was said of Hydra itself, without launcher and sweep."""
    from hydra.core.hydra_config import HydraConfig

    said = list(HydraConfig.get().overrides.hydra) if HydraConfig.initialized() else []
    kept = [one for one in said if not one.lstrip("+~").replace("/", ".").startswith(_OF_SWEEPS)]
    return kept + ([f"trust=[{','.join(trust)}]"] if trust else [])


def register() -> None:
    """Makes ${run_folder:...} known and Hydra's plug-in folder importable; to be called before Hydra starts."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_folder", lambda overrides: run_folder(list(overrides)), replace=True)
    plugins = str(Path(__file__).parent / "plugins")
    if plugins not in sys.path:
        sys.path.append(plugins)


def composed(*overrides: str, name: str = "train") -> "DictConfig":
    """The configuration that a command line with these overrides gives, inside a run of hydra.main too. Raises Hydra's errors."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register()
    running = GlobalHydra.instance().hydra  # one at a time, says Hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=CONF_DIR):
            return compose(name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def launch(application: Callable[[], object], by_argparse: bool = False) -> None:
    """Runs a Hydra application; every MmexpertError or Hydra error becomes a message on stderr and its exit code.

    by_argparse: it is a script with flags of its own.

    A traceback is shown only for a defect of the program, or with hydra.verbose=true.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing, so that the message can be formatted here
    verbose = any(argument.startswith("hydra.verbose=") for argument in sys.argv)
    register()
    try:
        arguments = prepare_arguments(sys.argv[1:], by_argparse)
        trust_list[:] = trusted(arguments)
        sys.argv[1:] = [argument for argument in arguments if not argument.startswith("trust=")]
        application()
        _end_sweep()
    except KeyboardInterrupt:
        _end("interrupted before anything was trained, or a second time: what was saved stays, the same command continues", 130)
    except Exception as error:  # noqa: BLE001  whatever ends a sweep, its table comes first; a defect is raised again with its traceback
        _end_sweep()
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE and not verbose:
            _end(f"StorageError: {error}; free space, or start where outputs/ can be written", StorageError.exit_code)
        if verbose or describe(error) is None:
            raise
        _end(str(describe(error)), getattr(error, "exit_code", ConfigError.exit_code))


def _end_sweep() -> None:
    """After a multirun: the table of its jobs, also in files beside them; exit 10 where one failed. Nothing after any other command."""
    jobs = sys.modules["mmexpert.sweep_jobs"].ended if "mmexpert.sweep_jobs" in sys.modules else None
    if jobs is None or not jobs.rows:
        return
    failed = len(jobs.failed())
    if os.environ.get("RANK", "0") != "0":  # one of several processes speaks for all
        raise SystemExit(SweepError.exit_code if failed else 0)
    jobs.write_tables()
    if failed:
        text = f"SweepError: {failed} of {len(jobs.rows)} jobs failed; the same command again runs only what is missing\n{jobs.table()}"
        _end(text, SweepError.exit_code)
    sys.stdout.write(jobs.table() + "\n")


def describe(error: Exception) -> str | None:
    """An error of this package or of Hydra as a message; None for any other, which is a defect and keeps its traceback."""
    return f"{type(error).__name__}: {error}" if isinstance(error, MmexpertError) else hydra_message(error)


def hydra_message(error: Exception) -> str | None:
    """What a Hydra or OmegaConf error says, in the words of this package; None for an error of another origin."""
    origin = type(error).__module__.split(".")[0]
    if origin not in ("hydra", "omegaconf", "antlr4"):
        return None
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        if inner := [group for group in groups() if group.startswith(f"{match[1]}/")]:
            return f"ConfigError: {match[1]} is no group of its own: choose {', '.join(inner)}"
        meant = f": did you mean {RENAMED_FLAGS[match[1]][0]!r}?" if match[1] in RENAMED_FLAGS else key_hint(match[1], sys.argv[1:])
        return f"ConfigError: {match[1]}: there is no such key{meant}"
    if match := re.search(r"Could not find '([^']+)'\n\nAvailable options in '([^']+)':\n((?:\t.*\n?)+)", text):
        group, option = match[2], match[1].rsplit("/", 1)[-1]
        if extra := PLUGINS.get(f"{group}={option}"):
            return f"ConfigError: {group}={option} is a plugin that is not installed here: pip install 'mmexpert[{extra}]'"
        return f"ConfigError: {group}={option}: there is no such option{suggest(option, match[3].split())}"
    if match := re.search(r"could not override '([^']+)'\.\s*No match in the defaults list", text, re.IGNORECASE):
        near = suggest(match[1], sorted(groups()))
        return f"ConfigError: {match[1]}: there is no such config group{near}"
    return f"ConfigError: {text.strip()}"


def help_text() -> str:
    """hydra.help of conf/train.yaml with the groups filled in; Hydra's own way to list them takes longer than to compose a run."""
    from omegaconf import OmegaConf

    template = OmegaConf.load(Path(CONF_DIR) / "train.yaml").hydra.help.template
    rows = "\n".join(f"{group}: {', '.join(options)}" for group, options in groups().items())
    return template.replace("$APP_CONFIG_GROUPS", rows) + "\n"


def _end(message: str, code: int) -> None:
    sys.stderr.write(mask_text(message) + "\n")
    raise SystemExit(code)
