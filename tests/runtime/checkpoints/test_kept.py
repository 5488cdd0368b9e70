"""Checkpoints that are kept in tests/runtime/data/checkpoints load, whatever has written them: see kept.py."""

from __future__ import annotations

import gzip
import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from optgen_optim import StoredAnewWarning
from results.training import LATER
from torch import Tensor

from optgen.runtime.settings.storage import asked_codec
from optgen.runtime.states.torch_codecs import decode, encode
from runtime.checkpoints.kept import (
    CASES,
    DIVIDED,
    FOLDER,
    SHARDS,
    STEPS,
    divided,
    params_of,
    stored_by,
    train,
    train_divided,
)
from runtime.checkpoints.kept import values_of as whole_values
from runtime.training import same, saved


def test_all_that_are_kept_are_loaded_here() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {*(f"{case}.pt.gz" for case in CASES), "shards.tar.xz"}


def without_later_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint but for settings that have come since and change nothing."""
    groups = [
        {key: value for key, value in group.items() if key not in LATER or value != LATER[key]}
        for group in checkpoint["param_groups"]
    ]
    return {**checkpoint, "param_groups": groups}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_as_it_would_have(case: str) -> None:
    """Its states are taken over as they are, bit for bit; so are they after a file of this version."""
    with gzip.open(FOLDER / f"{case}.pt.gz") as file:
        kept = torch.load(io.BytesIO(file.read()), weights_only=True)
    checkpoint = kept["checkpoint"]
    for through_a_file in (False, True):
        params = params_of(CASES[case])
        opt = CASES[case].make(params)
        with torch.no_grad():
            for param, value in zip(params, kept["before"], strict=True):
                param.copy_(value)
        with warnings.catch_warnings():
            warnings.simplefilter("error", StoredAnewWarning)  # nothing of them is re-encoded
            opt.load_state_dict(checkpoint)
        checkpoint = saved(opt)
        if CASES[case].library != "bitsandbytes.optim":
            assert same(checkpoint["state"], kept["checkpoint"]["state"])
        if not CASES[case].library:  # what this version writes, the one before reads, with keys that it does not know
            assert same(without_later_settings(checkpoint), kept["checkpoint"])
        if through_a_file:
            train(opt, STEPS + 1, STEPS + 1)
            bound = {"rtol": 1e-2, "atol": 1e-4} if case == "bitsandbytes" else {}  # rounds codes in its own way
            for param, wanted in zip(params, kept["after"], strict=True):
                torch.testing.assert_close(param.detach(), wanted, **bound)


@pytest.fixture
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def as_kept(case: str, found: Tensor, kept: Tensor) -> bool:
    """Compare values bit for bit; those of 8-bit codes, which had other last bits when they were kept, nearly so.

    Of their book two places may differ, of a scale that was found anew two, and a product is rounded.
    """
    if case.endswith("int8"):
        return bool(((found - kept).abs() <= 5 * 2.0**-23 * kept.abs()).all())
    return torch.equal(found, kept)


@pytest.mark.usefixtures("_one_process")
def test_shards_of_two_processes(tmp_path: Path) -> None:
    """One process re-encodes what two have had, as its blocks lie elsewhere; others are taken as they are."""
    import torch.distributed.checkpoint as dcp

    shutil.unpack_archive(FOLDER / "shards.tar.xz", tmp_path, filter="data")
    optimizers = divided()
    for opt in optimizers.values():
        train_divided(opt, 1, 1)
    found = stored_by(optimizers)
    theirs = dcp.FileSystemReader(tmp_path / "shards").read_metadata().state_dict_metadata
    ours = {
        f"{name}.{param}.{key}": value.shape
        for name, entries in found.items()
        for param, entry in entries.items()
        for key, value in entry.items()
    }
    assert {key: saved.size for key, saved in theirs.items()} == ours  # either of us finds all that it asks for
    dcp.load(found, checkpoint_id=tmp_path / "shards")
    values = torch.load(tmp_path / "shards" / "values.pt", weights_only=True)
    assert values.keys() == SHARDS.keys()
    for name, opt in optimizers.items():
        state = {int(key): entry for key, entry in found[name].items()}
        opt.load_state_dict({**opt.state_dict(), "state": state})
        codec = asked_codec(opt.param_groups[0])
        for shape, had, has in zip(DIVIDED, values[name], whole_values(opt), strict=True):
            for key, value in had.items():
                anew = decode(codec, *encode(codec, value, key == "exp_avg"), key == "exp_avg", shape)
                elsewhere = codec.block > 0 and not (
                    name.startswith("columns") and shape == (5, 1)
                )  # it is in one part
                assert as_kept(name, has[key], anew if elsewhere else value), (name, shape, key)
