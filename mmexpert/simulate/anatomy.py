"""One hip with a total prosthesis as soft shapes: how much each point of an AP film weakens the beam (spec/hip.md section 4).

Lengths are sides of the picture, x to the right, y down. What is drawn is a right hip: the midline lies towards the right edge.
at: float [2, S, S], x and y of every pixel in these units. A distance field is negative inside.
"""

from dataclasses import dataclass

import numpy as np

CEMENTLESS, CEMENTED, SHORT = DESIGNS = ("cementless", "cemented", "short")
CLASSES = (
    "well_fixed_cementless",
    "well_fixed_cemented",
    "well_fixed_short_stem",
    "stem_loosening",
    "cup_loosening",
    "dislocation",
    "periprosthetic_fracture",
    "polyethylene_wear",
)
_LENGTH = {CEMENTLESS: 0.40, CEMENTED: 0.37, SHORT: 0.17}
_RADIUS = {CEMENTLESS: 0.92, CEMENTED: 0.62, SHORT: 0.95}  # of the canal's half-width, at the stem's base
_TAPER = {CEMENTLESS: 0.45, CEMENTED: 0.50, SHORT: 0.40}  # radius at the tip over that at the base
_EDGE_PX = 1.2
_HIP = np.array((0.50, 0.34))


@dataclass(frozen=True)
class Patient:
    """What stays from visit to visit. canal: its half-width; bone, fat: factors of density; adduction: slope of the shaft; inclination,
    angle, phase: rad; head: radius; severity: about 0.25..1.5; level: where along the shaft it breaks, 0..1; tilt_sign: -1 or 1."""

    finding: str  # one of CLASSES: what is drawn, whatever is recorded
    side: str  # L | R
    design: str  # one of DESIGNS
    zoom: float
    canal: float
    cortex: float
    bone: float
    fat: float
    adduction: float
    inclination: float
    head: float
    severity: float
    level: float
    angle: float
    phase: float
    tilt_sign: int
    heterotopic_bone: bool
    wires: bool

    @property
    def loose(self) -> bool:
        """Whether the stem is."""
        return self.finding == "stem_loosening"


@dataclass(frozen=True)
class Stem:
    """A tapered rod from base along the unit vector axis."""

    base: np.ndarray
    axis: np.ndarray
    length: float
    base_radius: float
    tip_radius: float


def attenuation(patient: Patient, at: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Line integral of attenuation [S, S] (0 = air, about 4 = metal). grain [S, S]: the bone's texture, unit sd."""
    cup, cavity, inclination = cup_place(patient)
    head, offset = head_place(patient, cup)
    shell, liner = _cup(patient, at, cup, inclination)
    femur, outer, canal = _femur(patient, at, offset, grain)
    stem = stem_place(patient, offset)
    rod = _rod(patient, stem, at)
    if patient.design == CEMENTED:
        femur = femur + _cement(patient, stem, at, canal)
    if patient.loose:
        femur = femur * (1 - 0.88 * _lucent_line(patient, stem, rod, at))
        head = head + (0, 0.55 * subsidence(patient))
    neck = capsule(at, stem.base + (0.004, -0.008), head, 0.024, 0.019)
    metal = np.maximum.reduce([inside(rod), inside(neck), inside(distance(at, head) - patient.head), shell])
    bones = np.maximum(_pelvis(patient, at, cup, cavity, grain), 0) + np.maximum(femur, 0)
    return 0.55 * _soft_tissue(patient, at) + 1.05 * bones + liner + _distractors(patient, at, outer) + 4.2 * metal


def inside(field: np.ndarray, width: float | None = None) -> np.ndarray:
    """1 where a distance field is negative, 0 where positive, a logistic edge of the given width between; None: 1.2 pixels."""
    return 1 / (1 + np.exp(np.clip(field / (_EDGE_PX / len(field) if width is None else width), -30, 30)))


def distance(at: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Of every pixel to a point."""
    return np.sqrt((at[0] - point[0]) ** 2 + (at[1] - point[1]) ** 2)


def capsule(at: np.ndarray, start: np.ndarray, end: np.ndarray, start_radius: float, end_radius: float) -> np.ndarray:
    """Distance to a segment minus a radius that runs linearly along it."""
    axis = np.subtract(end, start)
    x, y = at[0] - start[0], at[1] - start[1]
    along = np.clip((x * axis[0] + y * axis[1]) / (axis @ axis), 0, 1)
    return np.sqrt((x - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2) - (start_radius + along * (end_radius - start_radius))


def turned(at: np.ndarray, centre: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u, v of every pixel in axes turned by angle (rad) about centre."""
    x, y = at[0] - centre[0], at[1] - centre[1]
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def ellipse(at: np.ndarray, centre: tuple[float, float], p: float, q: float, angle: float) -> np.ndarray:
    """Distance field, exact at the ends of the shorter half-axis, of an ellipse with half-axes p, q."""
    u, v = turned(at, np.asarray(centre), angle)
    return (np.sqrt((u / p) ** 2 + (v / q) ** 2) - 1) * min(p, q)


def cup_place(patient: Patient) -> tuple[np.ndarray, float, float]:
    """Centre of the cup, its cavity in the bone over its radius, inclination (rad)."""
    if patient.finding != "cup_loosening":
        return _HIP, 1.0, patient.inclination
    s = patient.severity
    return _HIP + np.array((0.030, -0.040)) * s, 1 + 0.28 * s, patient.inclination - 0.62 * s


def head_place(patient: Patient, cup: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of the head, and how far the femur has followed it."""
    s = patient.severity
    if patient.finding == "dislocation":
        head = _HIP + np.array((-0.055, -0.125)) * (0.75 + 0.35 * s)
        return head, head - _HIP
    head = cup
    if patient.finding == "polyethylene_wear":
        head = _HIP + np.array((0.006, -0.021)) * (0.7 + 0.5 * s)
    elif patient.finding == "cup_loosening":
        head = cup + (-0.004, 0.004)
    return head, 0.9 * (head - _HIP)


def subsidence(patient: Patient) -> float:
    """How far a loose stem has sunk."""
    return 0.030 * patient.severity if patient.loose else 0.0


def shaft(patient: Patient, along: float) -> np.ndarray:
    """Point of the femur's axis; 0 = at the neck, 1 = far down, often outside the film."""
    return np.array((0.415 + (0.02 - patient.adduction) * along, 0.47 + 0.60 * along))


def stem_place(patient: Patient, offset: np.ndarray) -> Stem:
    """Where the stem lies; a loose one is tilted and has sunk."""
    tilt = patient.tilt_sign * 0.10 * patient.severity * (0.8 if patient.design == SHORT else 1.0) if patient.loose else 0.0
    axis = np.array(((0.02 - patient.adduction) / 0.60 - tilt, 1.0))
    radius = patient.canal * _RADIUS[patient.design]
    base = shaft(patient, 0) + offset + (0.012, subsidence(patient))
    return Stem(base, axis / np.sqrt(axis @ axis), _LENGTH[patient.design], radius, radius * _TAPER[patient.design])


def _soft_tissue(patient: Patient, at: np.ndarray) -> np.ndarray:
    trunk = inside(ellipse(at, (0.55, 0.40), 0.55, 0.62, 0), 0.03)
    thigh = inside(capsule(at, (0.42, 0.45), (0.46, 1.15), 0.26, 0.20), 0.03)
    return patient.fat * (0.9 * trunk + 0.5 * thigh)


def _pelvis(patient: Patient, at: np.ndarray, cup: np.ndarray, cavity: float, grain: np.ndarray) -> np.ndarray:
    wing = 0.9 * inside(ellipse(at, (0.70, 0.14), 0.24, 0.13, -0.5), 0.012)
    roof = 0.8 * inside(capsule(at, (0.56, 0.22), _HIP + (0.03, -0.03), 0.07, 0.10), 0.01)
    ring = 0.8 * inside(np.abs(ellipse(at, (0.78, 0.52), 0.10, 0.13, 0.3)) - 0.035, 0.008)
    pelvis = patient.bone * np.maximum(wing + roof, ring)
    pelvis *= 1 - 0.9 * inside(distance(at, cup) - _cup_radius(patient) * cavity, 0.004)
    return pelvis + 0.10 * grain * inside(0.4 - pelvis, 0.1)


def _cup_radius(patient: Patient) -> float:
    return 1.55 * patient.head


def _cup(patient: Patient, at: np.ndarray, cup: np.ndarray, inclination: float) -> tuple[np.ndarray, np.ndarray]:
    """Metal shell (an indicator) and liner (attenuation): half discs on the pelvis's side."""
    above = (at[0] - cup[0]) * np.sin(inclination) - (at[1] - cup[1]) * np.cos(inclination)
    half = inside(-above - 0.004, 0.003)
    field = distance(at, cup) - _cup_radius(patient)
    return inside(np.abs(field) - 0.008) * half, 0.22 * inside(field) * half


def _femur(patient: Patient, at: np.ndarray, offset: np.ndarray, grain: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bone, and the distance fields of its outer surface and of its canal; broken and displaced where that is the finding."""
    broken = patient.finding == "periprosthetic_fracture"
    at = at - offset[:, None, None]
    u, v = turned(at, shaft(patient, patient.level), patient.angle)
    if broken:  # what lies at x is what was at x + .042 s: the lower part has moved to the left
        at = np.stack([at[0] + 0.042 * patient.severity * (v > 0), at[1]])
    k, w = patient.canal, patient.canal + patient.cortex
    top, end = shaft(patient, 0), shaft(patient, 1) + (0, 0.2)
    trochanter = capsule(at, top + (-0.030, -0.045), top + (0, 0.05), 0.052, 1.2 * w)
    lesser = capsule(at, top + (0.045, 0.055), top + (0.01, 0.13), 0.03, 0.03)
    outer = np.minimum.reduce([capsule(at, top, end, 1.12 * w, 0.95 * w), trochanter, lesser])
    canal = capsule(at, top + (0, -0.02), end, 1.25 * k, 0.9 * k)
    femur = patient.bone * (1.25 * inside(outer, 0.004) - 0.80 * inside(canal, 0.005)) + 0.12 * grain * inside(outer)
    if broken:
        jagged = np.abs(v + 0.010 * np.sin(90 * u + patient.phase)) - 0.011 * (0.8 + 0.5 * patient.severity)
        femur = femur * (1 - 0.92 * inside(jagged, 0.003))
    return femur, outer, canal


def _rod(patient: Patient, stem: Stem, at: np.ndarray) -> np.ndarray:
    """Distance field of the stem."""
    rod = capsule(at, stem.base, stem.base + stem.axis * stem.length, stem.base_radius, stem.tip_radius)
    if patient.design != CEMENTLESS:
        return rod
    shoulder = capsule(at, stem.base + (-0.018, -0.002), stem.base + 0.08 * stem.axis, 0.8 * stem.base_radius, stem.base_radius)
    return np.minimum(rod, shoulder)


def _cement(patient: Patient, stem: Stem, at: np.ndarray, canal: np.ndarray) -> np.ndarray:
    """Mantle, as far as the canal reaches, and the plug below it."""
    mantle = capsule(at, stem.base, stem.base + stem.axis * (stem.length + 0.015), stem.base_radius + 0.020, stem.tip_radius + 0.022)
    plug = ellipse(at, tuple(stem.base + stem.axis * (stem.length + 0.05)), 0.8 * patient.canal, 0.016, 0)
    return 1.35 * inside(mantle, 0.003) * inside(canal - 0.004) + 1.2 * inside(plug, 0.004)


def _lucent_line(patient: Patient, stem: Stem, rod: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Indicator of the dark line around a loose stem, or around its cement."""
    gap = 0.018 if patient.design == CEMENTED else 0.001
    band = np.maximum(rod - gap - (0.010 + 0.008 * patient.severity), gap - rod)
    return inside(band, 0.003) * inside(stem.base[1] - 0.03 - at[1], 0.01)


def _distractors(patient: Patient, at: np.ndarray, outer: np.ndarray) -> np.ndarray:
    extra = np.zeros_like(outer)
    if patient.heterotopic_bone:
        extra += 0.35 * inside(ellipse(at, (0.36, 0.33), 0.03, 0.02, 0.5), 0.012)
    if patient.wires:
        rings = [inside(np.abs(at[1] - height - 0.1 * (at[0] - 0.4)) - 0.004) for height in (0.60, 0.66)]
        extra += 1.5 * sum(rings) * inside(outer - 0.004)
    return extra
