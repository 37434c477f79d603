"""The keys of the source's train_clip_config.json: their types, their values where they are left out, and what is wrong with a value.

A key that a configuration leaves out has the value of the source's own example; a switch is then off, as a flag that is not given.
"""

import difflib
import math
import re
from dataclasses import dataclass

from relaxed_json import Configuration, Value

KINDS = {"whole": "a whole number", "number": "a number", "text": "a text in double quotes", "switch": "true or false"}


@dataclass(frozen=True)
class Key:
    """kind: of KINDS. example: the source's value. nullable: null is a value that mmexpert's key takes. words: the texts allowed."""

    kind: str
    example: Value
    nullable: bool = False
    words: tuple[str, ...] = ()


MONITORS = {"val_loss": "valid/loss_total", "val_acc": "valid/acc", "val_map": "valid/map"}
KEYS = {
    "image_encoder_name": Key("text", "resnet18"),
    "text_encoder_name": Key("text", "clip:ViT-B/32"),
    "embed_dim": Key("whole", 512, nullable=True),
    "batch_size": Key("whole", 32),
    "epochs": Key("whole", 100),
    "learning_rate": Key("number", 1e-4),
    "weight_decay": Key("number", 0.01),
    "temperature": Key("number", 0.07),
    "img_size": Key("whole", 224),
    "augmentation": Key("text", "standard", nullable=True, words=("none", "light", "standard", "strong")),
    "num_workers": Key("whole", 4),
    "use_amp": Key("switch", False),
    "gpu_id": Key("whole", 0, nullable=True),
    "save_best": Key("switch", False),
    "use_cv": Key("switch", False),
    "n_splits": Key("whole", 5),
    "random_state": Key("whole", 42),
    "early_stopping_patience": Key("whole", None, nullable=True),
    "early_stopping_min_delta": Key("number", 0.001),
    "early_stopping_monitor": Key("text", "val_loss", nullable=True, words=tuple(MONITORS)),
    "class_texts_file": Key("text", None, nullable=True),
    "use_weighted_sampling": Key("switch", False),
    "weight_method": Key(
        "text", "inverse_freq", words=("inverse_freq", "additive_smooth", "sqrt_inverse", "effective_number", "median_freq")
    ),
    "weight_smooth_factor": Key("number", 1.0),
    "use_superclip_loss": Key("switch", False),
    "class_loss_weight": Key("number", 1.0),
    "contrastive_loss_weight": Key("number", 1.0),
}


def nearest(word: str, known: list[str]) -> str:
    """The nearest of the known words, however far it is."""
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


def faults(configuration: Configuration) -> list[str]:
    """Unknown keys and wrong types, each with its place."""
    found = []
    for key, setting in configuration.settings.items():
        place, value = configuration.place(key), setting.value
        if key not in KEYS:
            found.append(f"{place}: unknown key {key!r}; the nearest known key is {nearest(key, list(KEYS))!r}")
        elif not _fits(KEYS[key], value):
            expected = KINDS[KEYS[key].kind] + (" or null" if KEYS[key].nullable else "")
            found.append(f"{place}: {key} is {shown(value)}, expected {expected}")
        elif (words := KEYS[key].words) and value is not None and str(value).lower() not in words:
            near = nearest(str(value), list(words))
            found.append(f"{place}: {key} is {shown(value)}, expected one of {', '.join(words)}; the nearest is {near!r}")
    return found


def _fits(key: Key, value: Value) -> bool:
    if value is None:
        return key.nullable
    if key.kind == "text":
        return isinstance(value, str) and value.strip() != ""
    if isinstance(value, bool) or key.kind == "switch":  # a bool is an int to Python
        return isinstance(value, bool) and key.kind == "switch"
    return isinstance(value, int) or (key.kind == "number" and isinstance(value, float) and math.isfinite(value))


def shown(value: Value) -> str:
    """A value as Hydra and JSON write it; texts that Hydra would read as something else in quotes."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./:\-]*", text) and not re.fullmatch(r"(?i)null|true|false|nan|inf|\.[\d_]+(e.*)?", text)
    if not isinstance(value, str) or plain:
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)  # Hydra's rule for quoted texts
    return f"'{escaped}'"


class Given:
    """The values of one configuration; what it leaves out is the source's example."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def __getitem__(self, key: str) -> Value:
        setting = self.configuration.settings.get(key)
        value = setting.value if setting else KEYS[key].example
        return value.lower() if KEYS[key].words and isinstance(value, str) else value

    def __contains__(self, key: str) -> bool:
        return key in self.configuration.settings

    def missing(self) -> list[str]:
        """Keys that the configuration leaves out."""
        return [key for key in KEYS if key not in self]

    def said(self, *keys: str) -> str:
        """'key=value, ...' for a comment, with what is not in the configuration marked."""
        return ", ".join(f"{key}={shown(self[key])}" + ("" if key in self else " (not given)") for key in keys)
