"""The slow, literal radar: a frame's sample cube, windowed and transformed. The reference for radar.py's fast kernels."""

import numpy as np

from mmexpert.simulate.waveform import CHIRPS, LIGHT


def exact_views(
    distance: np.ndarray, speed: np.ndarray, direction: np.ndarray, amplitude: np.ndarray, noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Powers [rows, T] of each view from [T, S] arrays (m, m/s, direction cosine, amplitude); noise [looks, T, rows]."""
    chirp = (np.arange(CHIRPS.chirps) - (CHIRPS.chirps - 1) / 2) * CHIRPS.period  # s from the frame's centre
    sample = (np.arange(CHIRPS.samples) - CHIRPS.samples / 2) / CHIRPS.rate  # s from the middle of the sampled band
    element = np.arange(CHIRPS.antennas) - (CHIRPS.antennas - 1) / 2
    beam = np.sin(np.pi * (np.arange(CHIRPS.antennas) + 1) / (CHIRPS.antennas + 1)) ** 2
    powers = {"range_time": [], "doppler_time": [], "azimuth_time": []}
    for t in range(len(distance)):
        cube = np.zeros((CHIRPS.chirps, CHIRPS.antennas, CHIRPS.samples), np.complex64)
        for r, v, u, a in zip(distance[t], speed[t], direction[t], amplitude[t], strict=True):
            path = r + v * chirp
            carrier = np.exp(2j * np.pi * np.mod(2 * path / CHIRPS.wavelength, 1.0))
            beat = np.exp(4j * np.pi * CHIRPS.slope / LIGHT * path[:, None] * sample)
            array = np.exp(1j * np.pi * u * element)
            cube += (a * carrier[:, None] * beat).astype(np.complex64)[:, None] * array[:, None].astype(np.complex64)
        ranges = np.fft.fft(cube * _hann(CHIRPS.samples), axis=2)
        dopplers = np.fft.fftshift(np.fft.fft(cube[:, :, CHIRPS.samples // 2] * _hann(CHIRPS.chirps)[:, None], axis=0), axes=0)
        beams = np.fft.fftshift(np.fft.fft(cube[:, :, CHIRPS.samples // 2] * (beam / beam.sum()), 128, axis=1), axes=1)
        powers["range_time"].append((np.abs(ranges) ** 2).mean((0, 1)))
        powers["doppler_time"].append((np.abs(dopplers) ** 2).mean(1))
        powers["azimuth_time"].append((np.abs(beams) ** 2).mean(0))
    return {name: np.stack(rows, 1) + (np.abs(noise[name]) ** 2).mean(0).T for name, rows in powers.items()}


def _hann(n: int) -> np.ndarray:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    return window / window.sum()
