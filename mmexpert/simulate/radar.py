"""An FMCW radar that sees moving points: three views of a clip, computed as shifted Hann kernels (RadHAR-like 77 GHz chirps).

Within a frame motion is linear, so a scatterer is one kernel per view; contributions add coherently. exact.py builds the sample
cube instead and is the reference of the tests.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmexpert.simulate.exact import exact_views
from mmexpert.simulate.skeleton import scatterers
from mmexpert.simulate.waveform import CHIRPS
from mmexpert.types import ConfigError

RADAR_VERSION = 1  # part of every cache's name; raised by whoever changes a number here
_TAPS = np.arange(-3, 4)
_PHASES = 256  # sub-bin steps of the kernel table
_NEAR = 0.2  # m: nearer points are not amplified further


@dataclass(frozen=True)
class Pose:
    """Where the radar is and looks; its right is boresight x up."""

    position: tuple[float, float, float] = (0.0, 1.0, 0.0)
    boresight: tuple[float, float, float] = (0.0, 0.0, -1.0)
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)


FRONT = Pose()
"""1 m high at the origin, looking to -z: whoever stands at z = -3 and faces +z faces the radar; +x is its right."""


def hann_kernel(x: np.ndarray, n: int) -> np.ndarray:
    """Spectrum of a Hann-windowed tone, x bins from its centre, N-point transform; 1 at x = 0."""
    return sum(weight * np.sinc(x + shift) / np.sinc((x + shift) / n) for shift, weight in ((0, 1.0), (-1, 0.5), (1, 0.5)))


@dataclass(frozen=True)
class Radar:
    """scatterers: points per bone. noise: complex Gaussian sd (the amplitude of 1 m^2 at 1 m is 1). clutter: still points of 0.1..1 m^2
    at 1..8 m. mti: subtracts what stands still. mode: fast | exact (0.3 s a frame, for tests)."""

    scatterers: int
    noise: float
    clutter: int
    mti: bool
    mode: str

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "exact"):
            raise ConfigError(f"dataset.radar.mode={self.mode}: choose fast or exact")
        for key, least in (("scatterers", 1), ("clutter", 0)):
            value = getattr(self, key)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"dataset.radar.{key}={value}: a whole number, {least} or more")
        if not isinstance(self.noise, (int, float)) or not 0 <= self.noise < np.inf:
            raise ConfigError(f"dataset.radar.noise={self.noise}: a standard deviation, 0 or more")

    def identity(self) -> dict[str, object]:
        """What the views depend on, for a cache's name."""
        return {"version": RADAR_VERSION, **self.__dict__}

    def joint_views(self, joints: np.ndarray, fps: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """joints [n, 22, 3] m at fps, before the radar of FRONT -> views of (n - 1) / fps seconds."""
        points, rcs = scatterers(joints, self.scatterers)
        return self.views(points, rcs, fps, FRONT, rng)

    def views(self, points: np.ndarray, rcs: np.ndarray, fps: float, pose: Pose, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """points [n, S, 3] m at fps (S may be 0), rcs [S] m^2 -> {range_time [256, T], doppler_time [128, T], azimuth_time [128, T]},
        float32 linear amplitude; T = whole frames of 20 ms in the n - 1 intervals."""
        position, velocity = resample(points, fps, CHIRPS.frame)
        if self.clutter:
            still, rcs_still = _clutter(self.clutter, pose, rng)
            position = np.concatenate([position, np.broadcast_to(still, (len(position), *still.shape))], 1)
            velocity = np.concatenate([velocity, np.zeros((len(velocity), *still.shape))], 1)
            rcs = np.concatenate([rcs, rcs_still])
        distance, speed, direction = polar(position, velocity, pose)
        amplitude = np.sqrt(rcs) / np.maximum(distance, _NEAR) ** 2
        if self.mti:
            amplitude = amplitude * np.abs(1 - np.sinc(speed / CHIRPS.speed_bin))
        make = exact_views if self.mode == "exact" else self._fast
        powers = make(distance, speed, direction, amplitude, self._noise(len(distance), rng))
        return {name: np.sqrt(power).astype(np.float32) for name, power in powers.items()}

    def _noise(self, frames: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Complex noise of each view, [looks, T, rows]: drawn first, so that fast and exact see the same."""
        shapes = {"range_time": (2, frames, 256), "doppler_time": (1, frames, 128), "azimuth_time": (2, frames, 128)}
        scale = np.float32(self.noise / np.sqrt(2))
        return {
            name: scale * (rng.standard_normal(shape, np.float32) + 1j * rng.standard_normal(shape, np.float32))
            for name, shape in shapes.items()
        }

    def _fast(
        self, distance: np.ndarray, speed: np.ndarray, direction: np.ndarray, amplitude: np.ndarray, noise: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Powers [rows, T] of each view from [T, S] arrays."""
        doppler = self._add(_wave(amplitude, distance), 64 + speed / CHIRPS.speed_bin, 128, True) + noise["doppler_time"][0]
        range_power = np.zeros((len(distance), 256), np.float32)
        azimuth_power = np.zeros((len(distance), 128), np.float32)
        quarter = CHIRPS.chirps * CHIRPS.period / 4
        for look, tau in enumerate((-quarter, quarter)):  # two looks stand for the mean power over a frame's chirps
            there = distance + speed * tau
            wave = _wave(amplitude, there)
            range_power += np.abs(self._add(wave, there / CHIRPS.range_bin, 256, False) + noise["range_time"][look]) ** 2 / 2
            azimuth_power += np.abs(_beam(wave, direction) + noise["azimuth_time"][look]) ** 2 / 2
        return {"range_time": range_power.T, "doppler_time": (np.abs(doppler) ** 2).T, "azimuth_time": azimuth_power.T}

    @cached_property
    def _tables(self) -> dict[int, np.ndarray]:
        fractions = np.arange(_PHASES + 1) / _PHASES - 0.5
        return {n: hann_kernel(_TAPS - fractions[:, None], n).astype(np.float32) for n in (128, 256)}

    def _add(self, wave: np.ndarray, bins: np.ndarray, rows: int, wraps: bool) -> np.ndarray:
        """Complex spectrum [T, rows]: each wave [T, S] spread over 7 taps around its fractional bin [T, S]."""
        frames = len(wave)
        nearest = np.rint(bins).astype(np.int64)
        kernel = self._tables[rows][np.rint((bins - nearest + 0.5) * _PHASES).astype(np.int64)]  # [T, S, 7]
        cells = nearest[..., None] + _TAPS
        if wraps:
            cells %= rows
            inside = None
        else:
            inside = (cells >= 0) & (cells < rows)
            cells = np.clip(cells, 0, rows - 1)
        flat = (cells + rows * np.arange(frames)[:, None, None]).ravel()
        weight = kernel if inside is None else kernel * inside
        real = np.bincount(flat, (wave.real[..., None] * weight).ravel(), frames * rows)
        imaginary = np.bincount(flat, (wave.imag[..., None] * weight).ravel(), frames * rows)
        return (real + 1j * imaginary).reshape(frames, rows).astype(np.complex64)


def _wave(amplitude: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Complex amplitude at the frame's centre; the phase is taken modulo a turn in float64, where millimetres survive."""
    turns = np.mod(distance / (CHIRPS.wavelength / 2), 1.0)
    return (amplitude * np.exp(2j * np.pi * turns)).astype(np.complex64)


def _beam(wave: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Spectrum [T, 128] over direction cosines; the array is centred: n = 0..7 would break left-right symmetry."""
    n = np.arange(CHIRPS.antennas)
    window = np.sin(np.pi * (n + 1) / (CHIRPS.antennas + 1)) ** 2
    step = np.exp(1j * np.pi * direction).astype(np.complex64)
    current = wave * np.exp(-3.5j * np.pi * direction).astype(np.complex64)
    elements = np.empty((len(wave), CHIRPS.antennas), np.complex64)
    for antenna in n:  # element n is the element before it, turned by the direction's phase step
        elements[:, antenna] = current.sum(1)
        current = current * step
    return np.fft.fftshift(np.fft.fft(elements * (window / window.sum()), 128, axis=1), axes=1)


def resample(points: np.ndarray, fps: float, frame: float) -> tuple[np.ndarray, np.ndarray]:
    """points [n, S, 3] at fps -> positions and velocities [T, S, 3] at the frames' centres (k + 0.5) frame: cubic Hermite with
    central-difference tangents; the velocity is its analytic derivative (differences would make a staircase of the Doppler)."""
    n = len(points)
    frames = int(np.floor((n - 1) / fps / frame + 1e-6))
    at = (np.arange(frames) + 0.5) * frame * fps
    i = np.minimum(at.astype(np.int64), n - 2)
    s = (at - i)[:, None, None]
    tangent = np.gradient(points, axis=0) if n > 1 else np.zeros_like(points)
    p0, p1, m0, m1 = points[i], points[i + 1], tangent[i], tangent[i + 1]
    position = (2 * s**3 - 3 * s**2 + 1) * p0 + (s**3 - 2 * s**2 + s) * m0 + (3 * s**2 - 2 * s**3) * p1 + (s**3 - s**2) * m1
    slope = (6 * s**2 - 6 * s) * p0 + (3 * s**2 - 4 * s + 1) * m0 + (6 * s - 6 * s**2) * p1 + (3 * s**2 - 2 * s) * m1
    return position, slope * fps


def polar(position: np.ndarray, velocity: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance m, range rate m/s (positive = receding), direction cosine to the radar's right, each [T, S]."""
    offset = position - np.asarray(pose.position)
    right = np.cross(pose.boresight, pose.up)
    distance = np.maximum(np.linalg.norm(offset, axis=-1), 1e-6)
    return distance, (offset * velocity).sum(-1) / distance, offset @ right / distance


def _clutter(count: int, pose: Pose, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    distance, angle = rng.uniform(1, 8, count), rng.uniform(-1.2, 1.2, count)
    right = np.cross(pose.boresight, pose.up)
    spread = distance[:, None] * (np.cos(angle)[:, None] * np.asarray(pose.boresight) + np.sin(angle)[:, None] * right)
    return np.asarray(pose.position) + spread, rng.uniform(0.1, 1.0, count)
