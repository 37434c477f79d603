"""A caption read back, by a grammar written apart from the one that makes captions: each word must be understood."""

import re
from dataclasses import dataclass

SUBJECT = "a person|someone|a human|the subject|a figure|an adult"
FACING = {
    "toward": ("facing the radar", "turned to the radar"),
    "away": ("with the back to the radar", "looking away from the radar"),
}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
VERBS = {  # N a number, (s) its plural
    "walk": "walks strides strolls",
    "run": "runs jogs rushes",
    "sidestep": "sidesteps steps_sideways shuffles_sideways",
    "turn": "turns rotates spins",
    "jump": "jumps hops makes_N_jump(s)",
    "jack": "does_N_jumping_jack(s) performs_N_star_jump(s) does_jumping_jacks",
    "squat": "squats crouches_down does_N_squat(s)",
    "bend": "bends_over bows leans_forward",
    "punch": "punches throws_N_punch(es) strikes",
    "wave": "waves greets_by_waving signals",
    "raise": "raises reaches_up does_N_arm_lift(s)",
    "kick": "kicks does_N_kick(s) swings_a_foot",
    "sit": "sits_down takes_a_seat lowers_onto_a_chair",
    "stand": "stands_still keeps_still waits_in_place",
}
PARTS = {  # in the order of a sentence: attribute -> value -> how it may be said
    "way": {"forward": "forward", "backward": "backward"},
    "limb": {
        "left": "(?:with|using) the left (?:arm|leg)|to the own left|leftward",
        "right": "(?:with|using) the right (?:arm|leg)|to the own right|rightward",
        "both": "(?:with|using) both arms",
    },
    "degrees": {90: "by ninety degrees|a quarter turn", 180: "by half a circle|a half turn"},
    "radial": {"toward": "toward the radar|closer to the radar", "away": "away from the radar|farther from the radar"},
    "lateral": {
        "left": "(?:and )?(?:to the radar's left|left of the radar)",
        "right": "(?:and )?(?:to the radar's right|right of the radar)",
    },
    "count": {1: "once|one time", 2: "twice|two times", 3: "thrice|three times", 4: "four times"},
    "speed": {"slow": "slowly|at a slow pace", "fast": "quickly|at a fast pace"},
}
NOTHING = {"way": "", "limb": "", "degrees": 0, "radial": "", "lateral": "", "count": 0, "speed": "normal"}


@dataclass(frozen=True)
class Read:
    """values: what a caption tells, (facing or segment number and attribute) -> value. words: how it tells it, by the same names."""

    values: dict
    words: dict


def read_caption(caption: str) -> Read:
    """Raises ValueError where a word is left over."""
    found = re.fullmatch(f"(?P<subject>{SUBJECT}) (?P<rest>.*)", caption)
    if not found:
        raise ValueError(f"{caption!r}: no subject")
    rest = found["rest"]
    for value, phrases in FACING.items():
        for phrase in phrases:
            if rest.startswith(f"{phrase} "):
                return _read(found["subject"], value, f"{phrase} ...", rest.removeprefix(f"{phrase} "))
            if rest.endswith(f", {phrase} at first"):
                return _read(found["subject"], value, f"..., {phrase}", rest.removesuffix(f", {phrase} at first"))
    raise ValueError(f"{caption!r}: no facing")


def _read(subject: str, facing: str, facing_words: str, body: str) -> Read:
    values, words = {"facing": facing}, {"facing": facing_words, "subject": subject}
    joints = re.findall(r", then | and then |, after that ", body)
    words["joint"] = "".join(joints)
    for i, segment in enumerate(re.split(r", then | and then |, after that ", body)):
        told, said = read_segment(segment)
        values |= {(i, name): value for name, value in told.items()}
        words |= {(i, name): text for name, text in said.items()}
    return Read(values, words)


def read_segment(segment: str) -> tuple[dict, dict]:
    """(values, words) of one segment by attribute."""
    tail = "".join(f"(?: (?P<{name}>{'|'.join(choices.values())}))?" for name, choices in PARTS.items())
    readings = []
    for motion, forms in VERBS.items():
        for form in forms.split():
            verb = re.sub(r"\((e?s)\)", r"(?P<plural>\1)?", form.replace("_", " ").replace("N", f"(?P<number>{'|'.join(NUMBERS)})"))
            if found := re.fullmatch(f"(?P<verb>{verb}){tail}", segment):
                readings.append(_values(motion, form, found))
    if len(readings) != 1:
        raise ValueError(f"{segment!r}: {len(readings)} readings")
    return readings[0]


def _values(motion: str, form: str, found: re.Match) -> tuple[dict, dict]:
    groups, values = found.groupdict(), {"motion": motion}
    for name, choices in PARTS.items():
        values[name] = next((value for value, said in choices.items() if groups[name] and re.fullmatch(said, groups[name])), NOTHING[name])
    if groups.get("number"):
        if values["count"] or (groups["plural"] is None) != (groups["number"] == "one"):
            raise ValueError(f"{found[0]!r}: told twice, or a wrong plural")
        values["count"] = NUMBERS[groups["number"]]
    return values, {"motion": form} | {name: groups[name] for name in PARTS}
