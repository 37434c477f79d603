"""Parameter groups and the rate's course over the steps."""

import logging
import math

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
_DESTRUCTIVE = 1e-4  # learning rate
_FEW = 100  # optimizer steps: at BatchNorm's momentum of 0.1 its statistics still lag behind weights that move fast


def parameter_groups(objective: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """One or two groups a tower (its biases and norms are not decayed), named radar, text, ..., model, loss.

    Every trainable parameter is in exactly one group. lr is scaled by the tower's lr_scale; parameters of the losses are never
    decayed: a decayed logit scale drifts towards temperature 1. Raises ConfigError where nothing can be trained.
    """
    owners = {id(p): (role, tower.lr_scale) for role, tower in objective.model.encoders.items() for p in tower.parameters()}
    owners |= {id(p): ("loss", 1.0) for part in (objective.loss, objective.sequence_loss) if part is not None for p in part.parameters()}
    groups: dict[tuple[str, bool], dict] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, scale = owners.get(id(parameter), ("model", 1.0))
        decayed = parameter.ndim >= 2 and owner != "loss"
        group = groups.setdefault(
            (owner, decayed),
            {"name": owner, "params": [], "param_names": [], "lr": lr * scale, "weight_decay": weight_decay if decayed else 0.0},
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    if not any(owner != "loss" for owner, _ in groups):
        raise ConfigError("nothing in the model can be trained: every tower is frozen; set freeze_backbone=false on one of them")
    return [groups[key] for key in sorted(groups)]


def warn_of_rates(objective: nn.Module, lr: float) -> None:
    """Says so where a pretrained tower learns faster than 1e-4, which destroys what it knows (open_clip issues 41, 999)."""
    for role, tower in objective.model.encoders.items():
        if getattr(tower, "fine_tuned", False) and lr * tower.lr_scale > _DESTRUCTIVE * (1 + 1e-6):
            log.warning(
                "optimizer.lr=%g x encoder.%s.lr_scale=%g is %.2g for a pretrained tower: above %g it forgets; lower one of them",
                lr, role, tower.lr_scale, lr * tower.lr_scale, _DESTRUCTIVE,
            )  # fmt: skip


def warn_of_few_steps(objective: nn.Module, steps: int) -> None:
    """Says so where a small training part gives a run with BatchNorm so few optimizer steps that its statistics lag behind its weights.

    Sixty films, 24 steps: 100 % on the training batches, chance on the test films; with the statistics taken anew 100 % there too.
    """
    learning = any(isinstance(part, _BatchNorm) and part.affine and part.weight.requires_grad for part in objective.modules())
    if learning and steps < _FEW:
        log.warning(
            "%d optimizer steps in all: BatchNorm's statistics lag behind its weights until about step %d, and accuracy may be at chance "
            "although the features are right (compare probe_acc); choose a smaller trainer.batch_size or more trainer.epochs, and with so "
            "few rows cv.selection=last cv.inner_val=0 trainer.early_stopping.patience=null", steps, _FEW,
        )  # fmt: skip


class WarmupSchedule(LRScheduler):
    """Linear warm-up, then cosine, linear or constant from the base rate to min_lr of it.

    total_steps: optimizer steps of the run; warmup: share of them, 0..1; min_lr: share of the base rate, 0..1; interval: step, or
    epoch (the rate changes when an epoch of steps_per_epoch begins).
    """

    SHAPES = {"cosine": lambda x: (1 + math.cos(math.pi * x)) / 2, "linear": lambda x: 1 - x, "constant": lambda x: 1.0}

    def __init__(
        self, optimizer: Optimizer, shape: str, warmup: float, min_lr: float, interval: str, total_steps: int, steps_per_epoch: int
    ) -> None:
        if shape not in self.SHAPES:
            raise ConfigError(f"scheduler.shape={shape}: choose one of {', '.join(self.SHAPES)}")
        if interval not in ("step", "epoch"):
            raise ConfigError(f"scheduler.interval={interval}: choose step or epoch")
        for key, value in (("warmup", warmup), ("min_lr", min_lr)):
            if not 0 <= value <= 1:
                raise ConfigError(f"scheduler.{key}={value}: a share, 0..1")
        self.shape, self.warmup_steps, self.min_lr = shape, round(warmup * total_steps), min_lr
        self.total_steps, self.stride = total_steps, 1 if interval == "step" else steps_per_epoch
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Rate of each group at the current step (torch's call)."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]

    def factor(self, step: int) -> float:
        """Share of the base rate at a step; the warm-up's first step is not 0, which would waste it."""
        step = step // self.stride * self.stride
        if step < self.warmup_steps:
            return min(1.0, (step + self.stride) / self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.min_lr + (1 - self.min_lr) * self.SHAPES[self.shape](min(1.0, progress))
