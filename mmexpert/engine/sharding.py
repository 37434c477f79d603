"""Towers split over processes by Accelerate's FSDP (version 2): what training, evaluation and checkpoints need of whole tensors.

Towers are sharded; loss, similarity, heads and combiner stay whole on every process, since FSDP takes no scalar such as logit_scale.
"""

import copy
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch import distributed as dist

from mmexpert.engine.accumulate import Accumulation, Features
from mmexpert.engine.blocks import transformer_blocks
from mmexpert.engine.parts import whole
from mmexpert.types import ConfigError

Prepared = tuple[nn.Module, nn.Module, Any]
"""(module as it is called, the same without DDP around it, optimizer)"""


def prepare(accelerator: Accelerator, objective: nn.Module, optimizer: torch.optim.Optimizer, accumulation: Accumulation) -> Prepared:
    """accelerator.prepare of both. Under FSDP a copy is sharded and trained, and objective stays whole, for evaluation and saving.

    Raises ConfigError for what is not possible under FSDP.
    """
    if not adopt_fsdp(accelerator):
        wrapped, optimizer = accelerator.prepare(objective, optimizer)
        return wrapped, objective, optimizer
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    _refuse(accelerator, objective, accumulation)
    trained = copy.deepcopy(objective)
    copies = dict(zip(objective.parameters(), trained.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [copies[parameter] for parameter in group["params"]]
    replicated = [part for name, part in trained.named_children() if name != "model"]
    replicated += [part for name, part in trained.model.named_children() if name != "encoders"]
    plugin = accelerator.state.fsdp_plugin
    plugin.ignored_modules = replicated
    plugin.mixed_precision_policy = None  # autocast instead, as without FSDP: the policy would give the losses in half precision
    if not plugin.transformer_cls_names_to_wrap and plugin.auto_wrap_policy in (None, transformer_auto_wrap_policy):
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for _, block in transformer_blocks(trained.model)})
    trained, optimizer = accelerator.prepare(trained, optimizer)
    trained.forward = accelerator.autocast()(trained.forward)
    for parameter in (p for part in replicated for p in part.parameters() if p.requires_grad):
        parameter.register_post_accumulate_grad_hook(_mean_over_ranks)
    return trained, trained, optimizer


def adopt_fsdp(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP. On CPUs Accelerate would take DDP in its place without a word; there it is told again."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or accelerator.num_processes == 1:
        return False
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin, state.distributed_type = FullyShardedDataParallelPlugin(), DistributedType.FSDP
    return state.distributed_type == DistributedType.FSDP


def _mean_over_ranks(parameter: Tensor) -> None:
    # exact after several micro-batches too: what they have brought before is the same on all ranks
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def _refuse(accelerator: Accelerator, objective: nn.Module, accumulation: Accumulation) -> None:
    plugin = accelerator.state.fsdp_plugin
    refusals = {
        "fsdp_version: 1 is not supported: set 2": plugin.fsdp_version != 2,
        "fsdp_cpu_ram_efficient_loading: every process loads its towers; set false": plugin.cpu_ram_efficient_loading,
        "fsdp_activation_checkpointing: set false and trainer.grad_checkpointing=true": plugin.activation_checkpointing,
        "fsdp_offload_params: not supported; set false": getattr(plugin.cpu_offload, "pin_memory", None) is not None,
        "trainer.accumulate=features encodes outside the sharded module: take gradients": isinstance(accumulation, Features),
        "trainer.compile=blocks does not go with sharded layers: take none": any(m._compiled_call_impl for m in objective.modules()),
    }
    if wrong := [text for text, found in refusals.items() if found]:
        raise ConfigError("FSDP: " + "; ".join(wrong) + ". scripts/accelerate/fsdp.yaml has settings that work")


@torch.no_grad()
def whole_module(objective: nn.Module, trained: nn.Module) -> nn.Module:
    """The objective given to prepare, in evaluation mode, with the weights that `trained` has by now. Every process calls it."""
    if objective is not trained:
        news = dict(trained.named_parameters()) | dict(trained.named_buffers())
        for name, tensor in [*objective.named_parameters(), *objective.named_buffers()]:
            tensor.copy_(whole(news[name]))
    return objective.eval()
