"""Checkpoints whose states are in a form that cannot be re-encoded: refused, and nothing is loaded.

Another codec or block size fits: tests/runtime/states/test_storage.py.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optgen_optim import SGD, AdamW, AdamW8bit, StoredAnewWarning
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS
from runtime.checkpoints.test_misfits import refused
from runtime.training import SMALL, make_params, same, saved, snapshot, train

Entry = dict[str, Any]
CODED = [name for name in CODECS if name != "fp32"]
KNOWN = (
    "(its codecs are fp32, bf16, fp16, int8, int4, normal4, fp8, companded8, "
    "their blocks 32, 64, 128, 256): update optgen"
)


def build(codec: str = "int8", **settings: Any) -> tuple[Any, Any, dict[str, Any]]:
    """An optimizer of one codec, its parameters (the first is (40, 30)), and its checkpoint after two steps."""
    params = make_params()
    opt = AdamW(params, codec=codec, min_8bit_size=SMALL, target="torch", **settings)
    train(opt, params, 1, 2)
    return opt, params, saved(opt)


def changed(checkpoint: dict[str, Any], mark: Any = None, group: Entry | None = None, **entry: Any) -> dict[str, Any]:
    """A copy with another state of the first parameter (None: taken out), another group, or other marks."""
    result = copy.deepcopy(checkpoint)
    result["state"][0] = {key: value for key, value in {**result["state"][0], **entry}.items() if value is not None}
    result["param_groups"][0].update(group or {})
    if mark is not None:
        result["optgen"]["codecs"] = mark
    return result


@pytest.mark.parametrize("codec", CODED)
def test_codes_and_scales_that_do_not_go_with_their_shape(codec: str) -> None:
    opt, params, good = build(codec)
    entry, form = good["state"][0], CODECS[codec]
    codes, shape = entry["exp_avg"], form.codes_shape((40, 30))

    def no(message: str, **entry: Any) -> None:
        refused(opt, params, changed(good, **entry), "parameter 0: ", message)

    no(f"exp_avg has shape {(codes.numel() - 1,)}, not (40, 30)", exp_avg=codes.reshape(-1)[:-1])
    no("state 'exp_avg' is int32 of shape (40, 30) with", exp_avg=torch.zeros(40, 30, dtype=torch.int32))
    if not form.scaled:
        no(f"'exp_avg' is {form.storage} of shape (40, 30) with 5 scales, which no codec stores: {codec} has none",
           exp_avg_absmax=torch.ones(5))  # fmt: skip
        return
    counts = [f"{form.with_block(block).scales(1200)} in blocks of {block}" for block in reversed(BLOCK_SIZES)]
    right = f"which no codec stores: {codec} has {', '.join(counts)}, or 1"
    assert form.scales(1200) != 4
    no(f"'exp_avg' is {form.storage} of shape {shape} with 4 scales, {right}", exp_avg_absmax=torch.ones(4))
    no(f"'exp_avg' is {form.storage} of shape {shape} with no scales, {right}", exp_avg_absmax=None)
    no("exp_avg_absmax is not a float32 tensor", exp_avg_absmax=entry["exp_avg_absmax"].double())
    no("there is exp_avg_absmax, but no exp_avg, whose scales these are", exp_avg=None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(40, 30).to_sparse(), "exp_avg is torch.sparse_coo, not dense"),
        (torch.zeros(40, 30, device="meta"), "exp_avg is on the device meta, without values"),
        (torch.zeros(40, 30, dtype=torch.complex64), "state 'exp_avg' is complex64 of shape (40, 30) with no scales"),
        (torch.zeros(40, 30, dtype=torch.bool), "state 'exp_avg' is bool of shape (40, 30) with no scales"),
        (torch.zeros(40, 30).to(torch.float8_e5m2), "state 'exp_avg' is float8_e5m2 of shape (40, 30) with no scales"),
    ],
    ids=["sparse", "meta", "complex", "bool", "e5m2"],
)
def test_tensors_that_no_codec_has(value: Tensor, message: str) -> None:
    opt, params, good = build()
    refused(opt, params, changed(good, exp_avg=value, exp_avg_absmax=None), f"parameter 0: {message}")


@pytest.mark.parametrize("step", [float("nan"), float("inf"), -1.0, True, torch.tensor(-1.0), torch.ones(2)], ids=str)
def test_counts_that_are_none(step: Any) -> None:
    opt, params, good = build()
    refused(opt, params, changed(good, step=step), "parameter 0: step is ", "and must be a number of steps")


# What a checkpoint says of its codecs


def test_a_codec_that_this_version_does_not_know() -> None:
    opt, params, good = build()
    mark = good["optgen"]["codecs"]
    known = [["int8", 256], ["fp32", 0]]
    for other, shown in (
        (["nf4", 64], "nf4 in blocks of 64"),
        (["int8", 512], "int8 in blocks of 512"),
        (["fp32", 64], "fp32 in blocks of 64"),
        (["nf32", 0], "nf32"),
        ("int8", "'int8'"),
        ([8, 256], "8 in blocks of 256"),
    ):
        message = f"it stores exp_avg as {shown}, which this optgen does not know {KNOWN}"
        refused(opt, params, changed(good, {**mark, "exp_avg": [other, *known]}), message)
    refused(opt, params, changed(good, ["int8"]), "its record of codecs is ['int8'], not a dict of lists")
    for group, message in (
        ({"codec": "nf4"}, "group 0: codec must be one of 'auto', 'fp32', "),
        ({"optim_bits": 3}, "group 0: optim_bits must be one of 32, 16, 8, 4, not 3"),
        ({"block_size": 512}, "group 0: block_size must be one of 0, 32, 64, 128, 256, not 512"),
        ({"rounding": "split24"}, "group 0: rounding must be one of 'nearest', "),
        ({"overrides": {1: {"codec": "nf4"}}}, "overrides of parameter 1 of group 0: codec must be one of"),
        ({"overrides": {9: {"lr": 0.1}}}, "group 0: overrides has the key 9, and the group positions 0 to 3"),
        ({"overrides": [1]}, "group 0: overrides is a dict of settings by position in the group, not [1]"),
    ):
        refused(opt, params, changed(good, group=group), message)


SCALED = [name for name, codec in CODECS.items() if codec.scaled]
SWAPPED = [(codec, marked) for codec in SCALED for marked in CODECS if codec != marked]


@pytest.mark.parametrize(("codec", "marked"), SWAPPED)
def test_codes_of_another_codec_than_the_checkpoint_says(codec: str, marked: str) -> None:
    """Tensors of one checkpoint in another one, that has a mark of its own."""
    opt, params, good = build(marked)
    _, _, other = build(codec)
    said, present = CODECS[marked], CODECS[codec]
    forms = [f"{said} ({said.storage} of shape {said.codes_shape((40, 30))}"]
    forms[0] += f" with {said.scales(1200)} scales)" if said.scaled else ")"
    forms += ["fp32 (float32 of shape (40, 30))"] if said.scaled else []  # small parameters have it
    there = f"{present.storage} of shape {present.codes_shape((40, 30))} with {present.scales(1200)} scales"
    message = (
        f"parameter 0: the checkpoint says that it stores exp_avg as {' or '.join(sorted(forms))}, and it is {there}"
    )
    refused(opt, params, {**good, "state": other["state"]}, message)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16"])
def test_numbers_without_scales_mean_what_they_are(codec: str) -> None:
    """Whoever has brought them to another float type has changed nothing that could be taken for something else."""
    opt, _, good = build("bf16" if codec == "fp32" else "fp32")
    _, _, other = build(codec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoredAnewWarning)
        opt.load_state_dict({**good, "state": other["state"]})
    assert same(saved(opt)["state"], other["state"])


def test_another_block_size_than_the_checkpoint_says() -> None:
    opt, params, good = build(block_size=64)
    _, _, other = build()
    message = (
        "parameter 0: the checkpoint says that it stores exp_avg as fp32 (float32 of shape (40, 30)) or int8 in blocks "
        "of 64 (uint8 of shape (40, 30) with 19 scales), and it is uint8 of shape (40, 30) with 5 scales"
    )
    refused(opt, params, {**good, "state": other["state"]}, message)
    without = {**good, "state": other["state"], "optgen": {k: v for k, v in good["optgen"].items() if k != "codecs"}}
    with pytest.warns(StoredAnewWarning, match="as int8 in blocks of 256; .* as int8 in blocks of 64"):
        opt.load_state_dict(without)


def test_settings_that_act_from_the_next_step_on_contradict_nothing() -> None:
    """A checkpoint says how states are stored, not how they are to be: loaded and saved without a step between."""
    _, _, wide = build("fp32")
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, target="torch")
    with pytest.warns(StoredAnewWarning):
        opt.load_state_dict(wide)
    again = AdamW8bit(make_params(), min_8bit_size=SMALL, target="torch")
    with pytest.warns(StoredAnewWarning):
        again.load_state_dict(saved(opt))
    assert same(saved(again)["state"], wide["state"])


# Overrides and hooks


def test_overrides_of_a_checkpoint_do_not_update_within_backward() -> None:
    """The optimizer itself decides this, not a checkpoint; another optimizer that does it is found before a load."""
    params = make_params()
    opt = AdamW(params, target="torch")
    opt.override(params[0], fused_backward=True, lr=0.5)
    train(opt, params, 1, 1)
    others = make_params()
    busy = SGD(others[:1], lr=0.1, fused_backward=True)
    resumed = AdamW(others, target="torch")
    resumed.load_state_dict(saved(opt))
    assert resumed.param_groups[0]["overrides"] == {0: {"lr": 0.5}}
    resumed.param_groups[0]["fused_backward"] = True  # from the next step on
    before = snapshot(resumed, others)
    with pytest.raises(ValueError, match="is updated within backward by another optimizer, a SGD"):
        resumed.load_state_dict(saved(AdamW(make_params())))
    assert same(before, snapshot(resumed, others))
    assert busy is not None


# Refused where it would be re-encoded


LOSSY: dict[str, Callable[[], tuple[dict[str, Any], dict[str, Any]]]] = {
    "codec": lambda: (build("fp32")[2], {"codec": "int8"}),
    "bits": lambda: (build("int8")[2], {"optim_bits": 4}),
    "block size": lambda: (build("int8")[2], {"codec": "int8", "block_size": 64}),
    "one scale": lambda: (build("int8")[2], {"codec": "int8", "block_wise": False}),
}


@pytest.mark.parametrize("case", LOSSY)
def test_a_warning_made_an_error_refuses(case: str) -> None:
    """As docs/precision.md says: nothing is loaded, and with the filter gone everything is."""
    checkpoint, settings = LOSSY[case]()
    params = make_params()
    opt = AdamW(params, lr=0.5, min_8bit_size=SMALL, target="torch", **settings)
    train(opt, params, 1, 3)
    before, kept = snapshot(opt, params), saved(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", category=StoredAnewWarning)
        with pytest.raises(StoredAnewWarning, match="AdamW: this checkpoint stores states as "):
            opt.load_state_dict(checkpoint)
        assert same(before, snapshot(opt, params))
        assert same(kept, saved(opt))
        opt.load_state_dict(kept)  # what needs nothing re-encoded loads
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.load_state_dict(checkpoint)
    assert {warning.category for warning in caught} == {StoredAnewWarning}
    assert same(saved(opt)["state"], checkpoint["state"])
    assert opt.param_groups[0]["lr"] == checkpoint["param_groups"][0]["lr"]


def test_it_names_the_line_of_the_user() -> None:
    checkpoint, settings = LOSSY["codec"]()
    opt = AdamW(make_params(), min_8bit_size=SMALL, target="torch", **settings)
    with pytest.warns(StoredAnewWarning) as caught:
        opt.load_state_dict(checkpoint)
    assert [warning.filename for warning in caught] == [__file__]
