"""The training loop: the only one, for every task. It knows batches, losses, metrics and time, and nothing of what they mean."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from mmexpert.data.loaders import Loaders
from mmexpert.engine.accumulate import Accumulation
from mmexpert.engine.evidence import clip_gradients
from mmexpert.engine.progress import Progress
from mmexpert.engine.runtime import Run
from mmexpert.engine.sharding import prepare, whole_module


@dataclass(frozen=True)
class FitSettings:
    """total_steps: optimizer steps of the run; epochs: passes that they make up; val_every: epochs between validations, 0 = none.

    accumulation: how the micro-batches of a step go backward.
    """

    total_steps: int
    epochs: int
    val_every: int
    max_grad_norm: float
    monitors: tuple[str, ...]
    accumulation: Accumulation

    def validates(self, epoch: int) -> bool:
        """Whether the epoch (from 1) ends with a validation: every val_every-th and the last."""
        return bool(self.val_every) and (epoch % self.val_every == 0 or epoch == self.epochs)


def fit(
    objective: nn.Module,
    loaders: Loaders,
    evaluator: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    settings: FitSettings,
    run: Run,
) -> Progress:
    """Trains to settings.epochs or early stopping, from wherever run.checkpoints left off. Called by every rank.

    Returns epoch, step, history and best. NonFiniteError comes before the update that would have spoilt the weights; a stop signal
    is SystemExit with 128 + its number, after a save.
    """
    accelerator, given = run.accelerator, objective
    objective, module, optimizer = prepare(accelerator, given, optimizer, settings.accumulation)  # module: without DDP around it
    # beside fp16's scaler Accelerate's optimizer adds nothing to a step, and looks for lomo twice in each: a third of the loop's own time
    stepping = optimizer if accelerator.scaler is not None else optimizer.optimizer
    parameters = list(module.named_parameters())  # the walk through all modules takes as long as a small step
    progress = run.checkpoints.restore(module, optimizer, schedule, accelerator.scaler)  # or a fresh start
    run.tracker.truncate(progress.step)
    while progress.epoch < settings.epochs and progress.patience_left:
        objective.train()  # frozen towers stay in eval: Objective.train() sees to it
        windows = loaders.train(progress.epoch, progress.step_in_epoch)  # order = f(seed, epoch): skipping costs nothing
        run.checkpoints.restore_random()  # after the iterator, which may draw; nothing the second time
        for window in run.meter.timed(islice(windows, settings.total_steps - progress.step)):
            module.at_epoch(progress.epoch + progress.step_in_epoch / loaders.steps_per_epoch)
            for losses, ids in settings.accumulation(objective, module, window):  # forward and backward, engine/accumulate.py
                progress.add(losses, len(ids))  # tensors: .item() here would wait for the device
                run.watch.see(ids, losses)
            gradients = clip_gradients(accelerator, parameters, settings.max_grad_norm)  # inf only measures
            norm = gradients.total
            verdict = run.watch.agree(gradients, progress)  # one all-reduce a step: finite everywhere? asked to stop?
            run.watch.guard(optimizer.optimizer, norm)
            if verdict.finite:
                stepping.step()
            stepping.zero_grad()
            schedule.step()
            module.clamp_()  # logit scales; a clamp in forward has no gradient at its bound
            progress.advance(loaders.batch_size)
            run.meter.step(progress, losses, norm, module, schedule)
            if verdict.stop or verdict.save or run.checkpoints.due(progress):
                run.checkpoints.save(module, optimizer, schedule, progress, accelerator.scaler)
            if verdict.stop:
                raise SystemExit(verdict.stop)  # also ends a multirun
        progress.pending = "evaluate"
        metrics = {}
        if settings.validates(progress.epoch + 1):
            objective.eval()
            try:
                metrics = evaluator(whole_module(given, module), loaders, accelerator, "valid").metrics
            except SystemExit:  # asked to stop: what was trained is kept, the evaluation runs again from its start
                run.checkpoints.save(module, optimizer, schedule, progress, accelerator.scaler)
                raise
        progress.close_epoch(run.meter.epoch(progress, metrics, module, schedule), settings.monitors if metrics else ())
        run.checkpoints.save(module, optimizer, schedule, progress, accelerator.scaler)
    return progress
