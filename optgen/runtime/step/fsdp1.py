"""Parameters of FullyShardedDataParallel, FSDP1: one-dimensional stretches of flattened tensors.

With `use_orig_params=True` each parameter is a stretch of one tensor of the model, whose shape the module's handle
knows. Without it, the optimizer has flat parameters, in which the module's tensors lie one after the other.

There is no way from a parameter to its module. torch calls global hooks as a module gets a submodule, also as FSDP1
wraps one, and these note the modules that it makes.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from optgen.runtime.core.shards import Division, Shard

FLAT = (
    "it is a flat parameter of FullyShardedDataParallel, in which the tensors of a module lie one after the other: "
    "build the module with use_orig_params=True, or use fully_shard"
)


def flat_shards(name: str, params: Sequence[Tensor]) -> dict[int, Shard]:
    """The parts that these parameters are, by their identity.

    Raises:
        ValueError: if the module of one is gone, or was made before this was imported.
    """
    known: dict[int, Shard] = {}
    for module in list(_MODULES):
        if module._handle is not None:
            known.update(_shards_of(module._handle))
    shards = {}
    for param in params:
        if id(param) not in known:
            raise ValueError(
                f"{name}: a parameter of shape {tuple(param.shape)} belongs to no FullyShardedDataParallel module that "
                f"is alive and was made after {name} was imported: import {name} before the model is wrapped, keep the "
                "module, and pass its parameters() to the optimizer"
            )
        shards[id(param)] = known[id(param)]
    return shards


_MODULES: weakref.WeakSet[Any] = weakref.WeakSet()


def _note(module: nn.Module, *_: object) -> None:
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if fsdp is not None and isinstance(module, fsdp):
        _MODULES.add(module)


register_module_module_registration_hook(_note)


def _shards_of(handle: Any) -> Iterator[tuple[int, Shard]]:
    flat = handle.flat_param
    divided = handle.uses_sharded_strategy and handle.process_group.size() > 1
    divisions = (Division(handle.process_group),) if divided else ()
    if flat._params is None:
        whole = torch.Size(flat._unpadded_unsharded_size)
        yield id(flat), Shard(whole, flat.shape, divisions, unnamed=FLAT)
        return
    infos = zip(flat._params, flat._shapes, flat._contiguities, flat._shard_param_infos, strict=True)
    for param, shape, contiguous, info in infos:
        start = (info.intra_param_start_idx or 0) if contiguous else None
        own = param.shape
        yield id(param), Shard(torch.Size(shape), own, divisions, None, start)
