"""Shards that two processes have saved, whole in plain tensors, load into parts of any form, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from optgen_optim import AdamW
from torch import Tensor

from optgen.codecs import CODECS
from optgen.runtime.checkpoints.misfits import read_entry
from optgen.runtime.checkpoints.places import Place
from optgen.runtime.checkpoints.shard_lines import own_box_scales
from optgen.runtime.checkpoints.shards import own_form
from optgen.runtime.core.shards import Shard
from runtime.checkpoints.kept import DIVIDED, FOLDER, SHARDS, divided, stored_by, train_divided
from runtime.checkpoints.test_kept import as_kept
from runtime.training import same

FP32 = (CODECS["fp32"],) * len(AdamW.rule.element_states)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """States as they are saved, in plain tensors, and the values that they stand for."""
    import torch.distributed.checkpoint as dcp

    folder: Path = tmp_path_factory.mktemp("shards")
    shutil.unpack_archive(FOLDER / "shards.tar.xz", folder, filter="data")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        optimizers = divided()
        for opt in optimizers.values():
            train_divided(opt, 1, 1)
        found = {
            name: {key: {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in entry.items()}
                   for key, entry in entries.items()}
            for name, entries in stored_by(optimizers).items()
        }  # fmt: skip
        dcp.load(found, checkpoint_id=folder / "shards")
    finally:
        dist.destroy_process_group()
    return found, torch.load(folder / "shards" / "values.pt", weights_only=True)


def box(shape: tuple[int, ...], dims: tuple[int, ...]) -> Shard:
    """The latter halves of some dimensions."""
    first = tuple(size // 2 if dim in dims else 0 for dim, size in enumerate(shape))
    own = torch.Size(size - before for size, before in zip(shape, first, strict=True))
    return Shard(torch.Size(shape), own, (), first)


def parts(shape: tuple[int, ...]) -> dict[str, Shard]:
    size = torch.Size(shape)
    last = len(shape) - 1
    stretch = torch.Size([size.numel() // 2])
    return {
        "whole": Shard(size, size, (), (0,) * len(shape), 0),
        "rows": box(shape, (0,)),
        "columns": box(shape, (last,)),
        "both": box(shape, (0, last)),
        "flat": Shard(size, stretch, (), None, size.numel() // 3),
    }


def cut(values: Tensor, shard: Shard) -> Tensor:
    if shard.offset is None:
        assert shard.start is not None
        return values.reshape(-1)[shard.start : shard.start + shard.own.numel()]
    for dim, first in enumerate(shard.offset):
        values = values.narrow(dim, first, shard.own[dim])
    return values


@pytest.mark.parametrize("part", ["whole", "rows", "columns", "both", "flat"])
@pytest.mark.parametrize("case", SHARDS)
def test_any_part_of_what_others_had(case: str, part: str, saved: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, values = saved
    for number, shape in enumerate(DIVIDED):
        shard = parts(shape)[part]
        own = torch.empty(shard.own)
        place = Place(number, own, own, shard, FP32, {}, own.shape)
        entry, wrong = read_entry(AdamW.rule, "", own, own_form(AdamW.rule, place, found[case][str(number)], {}), {})
        assert wrong == []
        for name, whole in values[case][number].items():
            state = AdamW.rule.states[name]
            assert as_kept(case, entry[name].values(state.signed, shard.own), cut(whole, shard)), (shape, name)


def test_a_stretch_of_a_box_that_is_the_whole_tensor() -> None:
    """Its blocks are those of the tensor, though no dimension was divided in fact."""
    shard = Shard(torch.Size((300, 1)), torch.Size((90,)), (), None, 200)
    scales, by_element = own_box_scales(torch.tensor([[1.0, 2.0]]), [[], [2]], shard, CODECS["int8"])
    assert scales is None
    assert by_element is not None
    assert by_element.tolist() == [1.0] * 56 + [2.0] * 34


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (1, 1)], ids=str)
def test_parameters_of_one_element_or_none(shape: tuple[int, ...]) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        param = torch.nn.Parameter(distribute_tensor(torch.ones(shape), mesh, [Replicate()]))
        opt = AdamW([param], target="torch", optim_bits=8, min_8bit_size=0)
        param.grad = distribute_tensor(-torch.ones(shape), mesh, [Replicate()])
        opt.step()
        before = dict(opt.state[param])
        opt.load_state_dict(opt.state_dict())
        assert same(opt.state[param], before)
        opt.step()
    finally:
        dist.destroy_process_group()


def test_what_is_no_part_of_the_parameter_is_refused(saved: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Tables of another number of rows, divisions of another tensor, blocks that no codec has."""
    found, _ = saved
    shape = torch.Size(DIVIDED[0])
    own = torch.empty(shape)
    place = Place(0, own, own, parts(tuple(shape))["rows"], FP32, {}, shape)
    for case, changes, message in (
        (
            "rows-int8",
            {"exp_avg_absmax": torch.ones(4, 2)},
            r"a tensor of shape \(4, 2\) for lines of one of \(5, 60\)",
        ),
        ("rows-int8", {"exp_avg_blocks": torch.tensor([[0, 7]] * 5)}, "exp_avg is said to be in blocks of 7, not of"),
        (
            "rows-int8",
            {"exp_avg_blocks": None},
            "exp_avg_blocks is missing: torch leaves it out of states that it flat",
        ),
        ("columns-int8", {"exp_avg_division": torch.ones(2, 3)}, r"a division of shape \(2, 3\), of a tensor of shape"),
        ("columns-int8", {"exp_avg_division": torch.tensor([[0, 2], [9, 9]])}, "in blocks of 9, not of 32, 64"),
        ("columns-int8", {"exp_avg_scales": torch.ones(59, 1)}, r"a tensor of shape \(59, 1\) for lines of one of"),
        ("rows-int8", {"exp_avg": torch.ones(5, 60, dtype=torch.int64)}, "no codec stores torch.int64 of shape"),
        ("rows-bf16", {"exp_avg": torch.ones(5, 61)}, r"a state has shape \(5, 61\), and its parameter \(5, 60\)"),
    ):
        with pytest.raises(ValueError, match=message):
            own_form(AdamW.rule, place, {**found[case]["0"], **changes}, {})
