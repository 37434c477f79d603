"""JSON as people write it by hand: `//` and `/* */` comments outside strings, trailing commas. Every key knows its line.

Only what a list of configurations needs: one object or a list of objects, whose values are numbers, texts, true, false or null.
"""

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from mmexpert.types import ConfigError

Value = str | int | float | bool | None

_BLANK = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)  # strings are read whole, so a sign inside one never comes here
_TEXT = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_WORD = re.compile(r"[^\s,:\[\]{}\"/]+")


@dataclass(frozen=True)
class Setting:
    """A value and where it stands: file (or --command) and line, from 1."""

    value: Value
    source: str
    line: int


@dataclass(frozen=True)
class Configuration:
    """An object of the list: its number from 1, where it begins, its keys in order."""

    source: str
    number: int
    line: int
    settings: dict[str, Setting]

    def place(self, key: str | None = None) -> str:
        """'FILE, configuration N, line L' of a key; of the opening bracket where the key is not there."""
        here = self.settings.get(key) if key else None
        source, line = (here.source, here.line) if here else (self.source, self.line)
        return f"{source}, configuration {self.number}, line {line}"


def read_configurations(text: str, source: str) -> list[Configuration]:
    """The configurations of a text. Raises ConfigError with source, configuration number, line and the last key before the fault."""
    return _Reader(text, source).read()


class _Reader:
    """Goes through the text once, from left to right."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.position = 0
        self.number = 1
        self.last_key: str | None = None

    def read(self) -> list[Configuration]:
        """The whole text."""
        found: list[Configuration] = []
        if self.peek() == "[":
            opened = self.line()
            self.position += 1
            while self.peek() != "]":
                if self.peek() == "":
                    self.fail(f"the '[' of line {opened} is not closed: ']' is missing at the end")
                self.number = len(found) + 1
                found.append(self.configuration())
                if self.peek() == ",":
                    self.position += 1
                elif self.peek() == "{":
                    self.fail(f"',' is missing between configurations {self.number} and {self.number + 1}")
            self.position += 1
        else:
            found.append(self.configuration())
        if self.peek():
            self.fail(f"the text should end here, found {self.shown()}; several configurations need '[' and ']' around them")
        if not found:
            self.fail("the list is empty, expected at least one configuration")
        return found

    def configuration(self) -> Configuration:
        """One object."""
        if self.peek() != "{":
            self.fail(f"expected '{{' of a configuration, found {self.shown()}")
        opened, settings = self.line(), {}
        self.position += 1
        while self.peek() != "}":
            if self.peek() in ("", "]", "{"):
                self.fail(f"the '{{' of line {opened} is not closed: '}}' is missing before {self.shown()}")
            if self.peek() != '"':
                self.fail(f"expected a key in double quotes or '}}', found {self.shown()}")
            line, key = self.line(), self.string()
            if key in settings:
                self.fail(f"{key!r} stands here a second time, first in line {settings[key].line}")
            self.last_key = key
            if self.peek() != ":":
                self.fail(f"expected ':' after the key, found {self.shown()}")
            self.position += 1
            settings[key] = Setting(self.value(), self.source, line)
            if self.peek() == ",":
                self.position += 1
            elif self.peek() == '"':
                self.fail(f"',' is missing before {self.shown()}")
        self.position += 1
        return Configuration(self.source, self.number, opened, settings)

    def value(self) -> Value:
        """A number, a text, true, false or null."""
        if self.peek() == '"':
            return self.string()
        match = _WORD.match(self.text, self.position)
        try:
            parsed = json.loads(match[0], parse_constant=_refuse) if match else _refuse("")
        except ValueError:
            self.fail(f"expected a number, a text in double quotes, true, false or null, found {self.shown()}")
        self.position = match.end()
        return parsed

    def string(self) -> str:
        """A text in double quotes, on one line."""
        match = _TEXT.match(self.text, self.position)
        try:
            parsed = json.loads(match[0]) if match else _refuse("")
        except ValueError:
            self.fail(f"a text that does not end on its line, or with a wrong backslash: {self.shown()}")
        self.position = match.end()
        return parsed

    def peek(self) -> str:
        """The next character that is neither blank nor comment; '' at the end."""
        self.position = _BLANK.match(self.text, self.position).end()
        if self.text.startswith("/*", self.position):
            self.fail("the comment that begins here has no '*/'")
        return self.text[self.position : self.position + 1]

    def line(self) -> int:
        """Line of the position; at the end of the text that of its last character."""
        return self.text.rstrip().count("\n", 0, self.position) + 1

    def shown(self) -> str:
        """What stands at the position, for a message."""
        rest = self.text[self.position :].split("\n", 1)[0].strip()
        return repr(rest[:30]) if rest else "the end of the text"

    def fail(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        near = f" (nearest known key: {self.last_key!r})" if self.last_key else ""
        raise ConfigError(f"{self.source}, configuration {self.number}, line {self.line()}: {message}{near}")


def _refuse(word: str) -> NoReturn:
    """NaN, Infinity and no word at all: json would take the first two."""
    raise ValueError(word)
