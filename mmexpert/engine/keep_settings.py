"""How often a run is saved, and how many of its newest checkpoints stay."""

from dataclasses import dataclass

from mmexpert.types import ConfigError


@dataclass(frozen=True)
class KeepSettings:
    """keep_last: newest checkpoints kept, 1 or more. save_every_minutes, save_every_steps: None = only at epoch ends and stops."""

    keep_last: int
    save_every_minutes: float | None
    save_every_steps: int | None

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"trainer.keep_last={self.keep_last}: 1 or more, else nothing is left to resume from")
        for key in ("save_every_minutes", "save_every_steps"):
            if (value := getattr(self, key)) is not None and value <= 0:
                raise ConfigError(f"trainer.{key}={value}: above 0, or null")
