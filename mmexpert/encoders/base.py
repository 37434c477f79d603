"""What every tower is."""

from torch import nn


class Encoder(nn.Module):
    """A tower: inputs of one role -> Encoding of width dim. lr_scale: its learning rate as a share of optimizer.lr."""

    def __init__(self, dim: int, lr_scale: float) -> None:
        super().__init__()
        self.dim, self.lr_scale = dim, lr_scale

    def frozen_modules(self) -> list[nn.Module]:
        """Modules that learn nothing and stay in evaluation mode."""
        return []
