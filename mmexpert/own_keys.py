"""Commands beside train: their help, and the keys that are theirs (run=, split=, name=) among the arguments."""

import logging
import re
import sys
from collections.abc import Sequence

from mmexpert.config import suggest
from mmexpert.types import ConfigError

Own = dict[str, str | None]


def shown_help(text: str) -> bool:
    """Whether the command line asks for help, which then is written. From here on the log's lines go to stdout."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if wanted := bool({"-h", "--help"} & set(sys.argv[1:])):
        sys.stdout.write(text)
    return wanted


def own_values(argv: Sequence[str], keys: Own) -> Own:
    """key=value arguments of a command that composes no configuration, over its defaults. Raises ConfigError for an unknown key."""
    own, others = own_and_overrides(argv, keys)
    if others:
        key = others[0].partition("=")[0]
        raise ConfigError(f"{key}: this command has no such key{suggest(key, list(keys))}")
    return own


def own_and_overrides(argv: Sequence[str], keys: Own) -> tuple[Own, list[str]]:
    """The command's own keys over their defaults, and all other key=value arguments. Raises ConfigError for what is none."""
    own, overrides = dict(keys), []
    for argument in argv:
        key, separator, value = argument.partition("=")
        if not separator:
            raise ConfigError(f"{argument!r}: write key=value; the command's own keys are {', '.join(keys)}")
        if key in own:
            own[key] = _unquoted(value)
        else:
            overrides.append(argument)
    return own, overrides


def plain_name(name: str) -> str:
    """The name of a folder below outputs/. Raises ConfigError for what would lie elsewhere, or be hidden."""
    if not re.fullmatch(r"[^\W_][\w.,=+ \-]*", name):
        raise ConfigError(f"name={name}: letters, digits and . , = + - _, beginning with a letter or digit")
    return name


def _unquoted(value: str) -> str:
    """What command_line.prepare_arguments has quoted for Hydra's grammar, as it was."""
    return value[1:-1].replace("\\'", "'").replace("\\\\", "\\") if value[:1] == "'" else value
