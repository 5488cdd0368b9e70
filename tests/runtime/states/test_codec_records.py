"""Codecs are recorded with the states they store, and not guessed: two that look alike are told from each other."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, StoredAnewWarning
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, WHOLE_TENSOR, Codec
from optgen.runtime.states import torch_codecs
from optgen.runtime.states.stored import CodecRecord, has_form, recognised
from runtime.training import SMALL, make_params, saved, train

TWIN = replace(CODECS["int8"], name="twin of int8")  # same dtype, shape and scales; its codes are those of -y


class Negated:
    """The codes of a twin."""

    def encode(self, y: Tensor, negative: Tensor, signed: bool) -> Tensor:
        return torch_codecs._CODINGS["int8"].encode(y, ~negative, signed)

    def decode(self, codes: Tensor, signed: bool) -> Tensor:
        return -torch_codecs._CODINGS["int8"].decode(codes, signed)


@pytest.fixture(autouse=True)
def _twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_codecs._CODINGS, TWIN.name, Negated())


def in_twin_codec() -> tuple[Any, Tensor, Tensor]:
    """An optimizer after two steps, its first parameter, and the state that this has in 8 bits; it is said a twin's."""
    params = make_params()
    opt = AdamW(params, optim_bits=8, min_8bit_size=SMALL, target="torch")
    train(opt, params, 1, 2)
    entry = opt.state[params[0]]
    values = torch_codecs.decode("int8", entry["exp_avg"], entry["exp_avg_absmax"], True, params[0].shape)
    assert opt._codecs[params[0]].codecs == {"exp_avg": CODECS["int8"], "exp_avg_sq": CODECS["int8"]}
    opt._codecs[params[0]] = CodecRecord(entry, {"exp_avg": TWIN, "exp_avg_sq": CODECS["int8"]})
    return opt, params[0], values


def stored_as_fp32(opt: Any) -> Tensor:
    """The first state in 32 bits, brought there by a step that adds nothing to it."""
    opt.param_groups[0].update(optim_bits=32, codec="fp32", betas=(0.999999999, 0.999))
    for param in opt.param_groups[0]["params"]:
        param.grad = torch.zeros_like(param)
    opt.step()
    found: Tensor = opt.state[opt.param_groups[0]["params"][0]]["exp_avg"]
    return found


COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda opt: opt,
    "deepcopy": copy.deepcopy,
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_step_reads_what_is_recorded(how: str) -> None:
    opt, _, values = in_twin_codec()
    torch.testing.assert_close(stored_as_fp32(COPIES[how](opt)), -values)


def test_what_somebody_has_put_there_has_no_record() -> None:
    """Another entry is read by its form; so is a state of another form. Codes in the place of codes are codes."""
    opt, param, values = in_twin_codec()
    opt.state[param] = dict(opt.state[param])
    torch.testing.assert_close(stored_as_fp32(opt), values)
    opt, param, values = in_twin_codec()
    opt.state[param].update(exp_avg=values.clone())
    del opt.state[param]["exp_avg_absmax"]
    torch.testing.assert_close(stored_as_fp32(opt), values)
    opt, param, values = in_twin_codec()
    opt.state[param].update(exp_avg=opt.state[param]["exp_avg"].clone())
    torch.testing.assert_close(stored_as_fp32(opt), -values)


def test_a_checkpoint_says_it_to_a_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codecs that it names come before those that look alike; a load records them, and the next step reads that."""
    monkeypatch.setitem(gc.get_referents(CODECS)[0], TWIN.name, TWIN)
    opt, param, values = in_twin_codec()
    for other in opt.state:
        opt._codecs[other] = CodecRecord(opt.state[other], {**opt._codecs[other].codecs, "exp_avg": TWIN})
    for other in opt.param_groups[0]["params"][2:]:  # which are in 32 bits
        del opt.state[other]
    checkpoint = saved(opt)
    assert checkpoint["optgen"]["codecs"] == {"exp_avg": [[TWIN.name, 256]], "exp_avg_sq": [["int8", 256]]}
    again = AdamW(make_params(), optim_bits=8, min_8bit_size=SMALL, target="torch")
    with pytest.warns(StoredAnewWarning, match="as twin of int8 in blocks of 256; .* as int8 in blocks of 256"):
        again.load_state_dict(checkpoint)
    assert again._codecs[again.param_groups[0]["params"][0]].codecs == opt._codecs[param].codecs
    assert saved(again)["optgen"] == checkpoint["optgen"]
    torch.testing.assert_close(stored_as_fp32(again), -values)
    del checkpoint["optgen"]["codecs"]  # as an earlier version has it
    again.load_state_dict(checkpoint)
    assert again._codecs[again.param_groups[0]["params"][0]].codecs["exp_avg"] == CODECS["int8"]


FORMS = [
    codec.with_block(block)
    for codec in CODECS.values()
    for block in ((*BLOCK_SIZES, WHOLE_TENSOR) if codec.scaled else (0,))
]


SHAPES = [(2,), (3,), (31,), (33,), (64, 1), (1, 65), (129,), (5, 60), (300,), (2, 4, 99)]


@pytest.mark.parametrize("codec", FORMS, ids=str)
def test_forms_of_this_version_tell_its_codecs_from_each_other(codec: Codec) -> None:
    """Checkpoints without a record are read by them: where two look alike, they are alike. Another codec that looks as
    one of these needs a record wherever that is missing."""
    state = AdamW.rule.states["exp_avg"]
    for shape in map(torch.Size, SHAPES):
        codes, scales = torch_codecs.zeros(codec, shape, signed=True)
        present = (codec.name, codec.scales(shape.numel()))
        others = [other for other in FORMS if has_form(other, codes, shape, 0 if scales is None else scales.numel())]
        for found in (recognised(state, codes, scales, shape), *others):
            assert (found.name, found.scales(shape.numel())) == present, shape
