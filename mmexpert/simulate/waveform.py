"""Constants of the radar's chirps (those of RadHAR's sensor) and what follows from them."""

from dataclasses import dataclass

LIGHT = 299_792_458.0  # m/s


@dataclass(frozen=True)
class Chirps:
    """Constants of the waveform and what follows from them."""

    start_hz: float = 77e9
    slope: float = 70e12  # Hz/s
    rate: float = 5.209e6  # samples/s
    samples: int = 256
    chirps: int = 128
    period: float = 156.25e-6  # s from chirp to chirp
    frame: float = 0.02  # s
    sampled_from: float = 7e-6  # s after the chirp's start
    antennas: int = 8  # at half a wavelength

    @property
    def range_bin(self) -> float:
        """m: c / 2B, B = slope * samples / rate."""
        return LIGHT * self.rate / (2 * self.slope * self.samples)

    @property
    def wavelength(self) -> float:
        """m, at the middle of the sampled band."""
        return LIGHT / (self.start_hz + self.slope * (self.sampled_from + self.samples / (2 * self.rate)))

    @property
    def speed_bin(self) -> float:
        """m/s: wavelength / (2 * chirps * period)."""
        return self.wavelength / (2 * self.chirps * self.period)


CHIRPS = Chirps()
