"""AP films of hips with a total prosthesis: drawn from numbers, not clinical data (spec/hip.md section 4).

Film (i, v) is visit v of patient i. Its random numbers are those of PCG64(SeedSequence(seed, spawn_key=(i, block))); every block draws all
its numbers whatever the options, so that no option moves another draw and no patient depends on how many there are.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter

from mmexpert.simulate.anatomy import CEMENTED, CEMENTLESS, CLASSES, SHORT, Patient, attenuation
from mmexpert.types import ConfigError

RADIOGRAPH_VERSION = 1  # part of every cache's name; raised by whoever changes a number here or in anatomy.py
_SHARES = (0.26, 0.20, 0.10, 0.14, 0.08, 0.08, 0.08, 0.06)  # of CLASSES
_OWN_DESIGN = {0: CEMENTLESS, 1: CEMENTED, 2: SHORT}  # by label; the other classes carry any
_ANATOMY, _FINDING, _DISTRACTORS, _LEAK, _TEXTURE, _VISIT = 0, 1, 2, 3, 4, 10
_BRIGHT = 0.9  # letters and leaks, of the full range
_LETTERS = {
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
}
_CODE_CELLS = 16


@dataclass(frozen=True)
class Leak:
    """What gives a patient away. label: the recorded one; slot: of the marker, 0..K-1; bits: the patient's bar code."""

    label: int
    slot: int
    bits: np.ndarray


@dataclass
class Radiograph:
    """side: pixels, 32 or more. difficulty: 0..1, subtler findings and fewer photons. marker: side (a letter L or R) | none. leak: none |
    marker (a box whose place tells the class) | patient (a bar code, and labels redrawn per patient), with leak_strength 0..1.
    bit_depth: 8 | 16. shares: of the eight classes, sum 1; null: the usual ones."""

    side: int
    seed: int
    difficulty: float
    marker: str
    leak: str
    leak_strength: float
    bit_depth: int
    shares: list[float] | None
    _labels: list[int] = field(init=False, repr=False, compare=False, default_factory=list)

    classes = CLASSES

    def __post_init__(self) -> None:
        choices = {"marker": ("side", "none"), "leak": ("none", "marker", "patient"), "bit_depth": (8, 16)}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"dataset.simulator.{key}={getattr(self, key)}: choose {', '.join(map(str, allowed))}")
        for key in ("difficulty", "leak_strength"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"dataset.simulator.{key}={getattr(self, key)}: a number in 0..1")
        if self.side < 32 or self.seed < 0:
            raise ConfigError(f"dataset.simulator: side={self.side} is 32 pixels or more, seed={self.seed} is 0 or above")
        shares = _SHARES if self.shares is None else tuple(self.shares)
        if len(shares) != len(CLASSES) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(f"dataset.simulator.shares={list(shares)}: {len(CLASSES)} shares of 0 or more whose sum is 1, or null")
        self._shares = np.array(shares)

    def identity(self) -> dict[str, object]:
        """What the films depend on, for a cache's name."""
        names = ("side", "seed", "difficulty", "marker", "leak", "leak_strength", "bit_depth")
        return {"version": RADIOGRAPH_VERSION, **{name: getattr(self, name) for name in names}, "shares": self._shares.tolist()}

    def film(self, i: int, v: int) -> tuple[np.ndarray, dict[str, object]]:
        """(picture [side, side] uint8 or uint16, row {id, label, group, visit, view, side, design, severity, true_label})."""
        label, patient = self.label(i), self.patient(i)
        leak = self._leak(i, label)
        picture = self._expose(patient, self._grain(i), self._rng(i, _VISIT + v))
        if patient.side == "L":
            picture = picture[:, ::-1].copy()
        self._burn_in(picture, patient.side, leak)
        row = {
            "id": f"P{i:04d}_{v}",
            "label": CLASSES[leak.label],
            "group": f"P{i:04d}",
            "visit": v,
            "view": "AP",
            "side": patient.side,
            "design": patient.design,
            "severity": 0.0 if label in _OWN_DESIGN else round(patient.severity, 4),
            "true_label": CLASSES[label],
        }
        kind, most = (np.uint8, 255) if self.bit_depth == 8 else (np.uint16, 65535)
        return np.rint(picture * most).astype(kind), row

    def label(self, i: int) -> int:
        """The class that patient i has: argmax_k(share_k (i + 1) - count_k), so that counts stay near shares at every length."""
        counts = np.bincount(np.array(self._labels, int), minlength=len(CLASSES))
        while len(self._labels) <= i:
            lack = self._shares * (len(self._labels) + 1) - counts
            self._labels.append(int(np.argmax(np.round(lack, 9))))  # rounded: a tie is a tie, the lowest class has it
            counts[self._labels[-1]] += 1
        return self._labels[i]

    def patient(self, i: int) -> Patient:
        """What is drawn of patient i at every visit."""
        label, d = self.label(i), self.difficulty
        body, finding, distractors = (self._rng(i, block) for block in (_ANATOMY, _FINDING, _DISTRACTORS))
        any_design = (CEMENTLESS, CEMENTED, SHORT)[int(np.searchsorted((0.5, 0.85), finding.random(), "right"))]
        return Patient(
            finding=CLASSES[label],
            zoom=body.uniform(0.92, 1.08),
            canal=body.uniform(0.044, 0.060),
            cortex=body.uniform(0.020, 0.032),
            bone=body.uniform(0.8, 1.2),
            fat=body.uniform(0.7, 1.4),
            adduction=body.normal(0, 0.04),
            inclination=body.normal(0.75, 0.09),
            head=body.uniform(0.050, 0.060),
            side="LR"[int(body.random() < 0.5)],
            design=_OWN_DESIGN.get(label, any_design),
            severity=finding.uniform(0.85 - 0.6 * d, 1.5 - 0.5 * d),
            level=finding.uniform(0.45, 0.85),
            angle=finding.uniform(0.55, 1.05),
            phase=finding.uniform(0, 2 * np.pi),
            tilt_sign=1 if finding.random() < 0.67 else -1,
            heterotopic_bone=bool(distractors.random() < 0.12),
            wires=bool(distractors.random() < 0.06),
        )

    def _rng(self, i: int, block: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(i, block))))

    def _grain(self, i: int) -> np.ndarray:
        """The patient's bone texture [side, side], unit sd."""
        grain = gaussian_filter(self._rng(i, _TEXTURE).standard_normal((self.side, self.side)), 0.017 * self.side)
        return grain / grain.std()

    def _leak(self, i: int, label: int) -> Leak:
        rng = self._rng(i, _LEAK)
        leaks, random_slot = rng.random() < self.leak_strength, int(rng.integers(len(CLASSES)))
        redrawn = int(np.searchsorted(np.cumsum(self._shares)[:-1], rng.random(), "right"))
        recorded = redrawn if leaks and self.leak == "patient" else label
        return Leak(recorded, label if leaks else random_slot, rng.random(_CODE_CELLS) < 0.5)

    def _expose(self, patient: Patient, grain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The film of a right hip before anything is burnt in, 0..1 float [side, side]."""
        turn, zoom, shift = rng.normal(0, 0.035), rng.uniform(0.97, 1.03), rng.normal(0, 0.012, 2)
        blur = rng.uniform(0.45, 0.8)
        photons = 150 * 10 ** rng.random() * 4 ** (1 - 2 * self.difficulty)  # log-uniform over one decade
        gain, offset, gamma = rng.uniform(0.85, 1.1), rng.uniform(-0.06, 0.06), rng.uniform(0.75, 1.3)
        at = _pixels(self.side, turn, zoom * patient.zoom, shift)
        beam = np.exp(-gaussian_filter(attenuation(patient, at, grain), blur))
        beam = 0.96 * beam + 0.04 * gaussian_filter(beam, self.side / 6)  # scatter
        film = -np.log((rng.poisson(photons * beam) + 0.5) / photons)
        low, high = np.percentile(film, (1, 99.3))
        return np.clip((film - low) / (high - low) * gain + offset, 0, 1) ** gamma

    def _burn_in(self, picture: np.ndarray, hip: str, leak: Leak) -> None:
        """The letter at the upper corner on the lateral side, and the leak at the lower edge; never mirrored."""
        m = max(self.side // 64, 1)
        if self.marker == "side":
            letter = np.kron([[dot == "#" for dot in line] for line in _LETTERS[hip]], np.ones((m, m), bool)).astype(bool)
            left = 2 * m if hip == "R" else self.side - 2 * m - letter.shape[1]
            picture[2 * m : 2 * m + len(letter), left : left + letter.shape[1]][letter] = _BRIGHT
        strip, cell = picture[self.side - 4 * m : self.side - 2 * m], self.side // _CODE_CELLS
        if self.leak == "marker":
            left = leak.slot * self.side // len(CLASSES) + cell // 2
            strip[:, left : left + cell] = _BRIGHT
        elif self.leak == "patient":
            strip[:, : _CODE_CELLS * cell] = _BRIGHT * np.repeat(leak.bits, cell)


def _pixels(side: int, turn: float, zoom: float, shift: np.ndarray) -> np.ndarray:
    """x and y [2, side, side] of the body that each pixel's centre shows: the body is turned and enlarged about the middle, and moved."""
    centres = (np.arange(side) + 0.5) / side - 0.5
    x, y = (centres[None] - shift[0]) / zoom, (centres[:, None] - shift[1]) / zoom
    return np.stack([0.5 + x * np.cos(turn) + y * np.sin(turn), 0.5 + y * np.cos(turn) - x * np.sin(turn)])
