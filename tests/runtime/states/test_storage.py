"""Storage of states and parameters: what settings ask for, what is refused, and what checkpoints bring."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from optgen.codecs import BLOCK_SIZES, CODECS, PARAMETER_CODECS
from optgen.runtime.settings.storage import asked_codec

optim = pytest.importorskip("optgen_optim")

CODED = [name for name in CODECS if name != "fp32"]
ROUNDED = [name for name in PARAMETER_CODECS if name != "nearest"]


def make(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (70, 80)) -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(shape).to(dtype))


def train(opt: torch.optim.Optimizer, steps: int = 3, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in opt.param_groups:
            for param in group["params"]:
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        opt.step()


def stored(opt: torch.optim.Optimizer, param: torch.Tensor) -> dict[str, tuple[torch.dtype, int]]:
    return {key: (value.dtype, value.numel()) for key, value in opt.state[param].items() if key != "step"}


@pytest.mark.parametrize("name", CODED)
def test_every_codec_stores_as_its_table_says(name: str, target: str) -> None:
    param = make()
    opt = optim.AdamW([param], codec=name, target=target)
    train(opt)
    codec = CODECS[name]
    assert opt.param_groups[0]["optim_bits"] == codec.bits
    codes, scales = stored(opt, param)["exp_avg"], stored(opt, param).get("exp_avg_absmax")
    assert codes == (getattr(torch, codec.storage), 5600 // codec.packed)
    assert scales == ((torch.float32, codec.scales(5600)) if codec.scaled else None)
    assert opt.state_bytes() == 2 * codec.state_bytes(5600) + 4


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.scaled])
def test_every_block_size(name: str, block: int, target: str) -> None:
    param = make()
    opt = optim.AdamW([param], codec=name, block_size=block, target=target)
    train(opt)
    assert opt.state[param]["exp_avg_absmax"].numel() == -(-5600 // block)


@pytest.mark.parametrize(("bits", "name"), [(32, "fp32"), (16, "bf16"), (8, "int8"), (4, "int4")])
def test_bits_stand_for_codecs(bits: int, name: str) -> None:
    assert asked_codec({"optim_bits": bits}) == CODECS[name]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("AdamW", {"codec": "int4", "optim_bits": 8}, "codec='int4' has 4 bits, which optim_bits=8 conflicts with"),
    ("AdamW8bit", {"codec": "int4"}, "AdamW8bit stores its states in 8 bits, and codec='int4' has 4"),
    ("AdamW32bit", {"codec": "bf16"}, "AdamW32bit stores its states in 32 bits, and codec='bf16' has 16"),
    ("AdamW", {"codec": "int3"}, "codec must be one of 'auto', 'fp32'"),
    ("AdamW", {"block_size": 64}, "block_size=64 is for quantized states, and fp32 is not quantized"),
    ("AdamW", {"block_size": 64, "optim_bits": 8, "block_wise": False}, "block_size=64 is for block_wise=True"),
    ("AdamW", {"block_size": 48, "optim_bits": 8}, "block_size must be one of 0, 32"),
    ("AdamW", {"seed": 1}, "seed is for rounding='stochastic', not 'nearest'"),
    ("AdamW", {"seed": -1, "rounding": "stochastic"}, "seed must be a whole number"),
    ("AdamW", {"amsgrad": True, "optim_bits": 4}, "AdamW does not support amsgrad=True with 4-bit states"),
    ("AdamW", {"amsgrad": True, "codec": "fp8"}, "AdamW does not support amsgrad=True with 8-bit states"),
    (
        "AdamW",
        {"rounding": "kahan"},
        "rounding='kahan' is for bfloat16 and float16 parameters, and all here are float32",
    ),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_would_do_nothing_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        getattr(optim, name)([make()], **settings)


def test_split_weights_are_for_bfloat16() -> None:
    with pytest.raises(ValueError, match="rounding='split8' is for bfloat16 parameters, not float16; use 'kahan'"):
        optim.AdamW([make(torch.float16)], rounding="split8")


def test_a_rounding_that_a_group_is_given_later_is_checked_by_the_step(target: str) -> None:
    param = make(torch.float16)
    opt = optim.AdamW([param], target=target)
    train(opt)
    before = param.detach().clone()
    opt.param_groups[0]["rounding"] = "split8"
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="AdamW: rounding='split8' is for bfloat16 parameters, not float16"):
        opt.step()
    assert torch.equal(param, before)
    assert float(opt.state[param]["step"]) == 3
    opt.param_groups[0]["rounding"] = "kahan"
    opt.step()
    assert not torch.equal(param, before)


def test_float32_parameters_beside_others_are_as_they_are(target: str) -> None:
    params = [make(), make(torch.bfloat16)]
    opt = optim.AdamW(params, rounding="kahan", target=target)
    train(opt)
    assert "param_compensation" not in opt.state[params[0]]
    assert opt.state[params[1]]["param_compensation"].dtype is torch.bfloat16


def test_a_parameter_of_its_own_bits() -> None:
    """Bits in an override or a group take the place of the optimizer's codec, and the other way round."""
    params = [make(), make(), make()]
    groups = [{"params": params[:2]}, {"params": params[2:], "optim_bits": 32}]
    opt = optim.AdamW(groups, codec="int4", target="torch")
    opt.override(params[1], optim_bits=8)
    train(opt)
    assert [opt.state[param]["exp_avg"].dtype for param in params] == [torch.uint8, torch.uint8, torch.float32]
    assert [opt.state[param]["exp_avg"].numel() for param in params] == [2800, 5600, 5600]


def test_a_group_that_contradicts_itself_is_refused_at_the_next_step() -> None:
    opt = optim.AdamW([make()], codec="int8", target="torch")
    train(opt)
    opt.param_groups[0]["optim_bits"] = 4
    with pytest.raises(ValueError, match="codec='int8'"):
        train(opt)


def test_small_parameters_and_single_elements_stay_whole(target: str) -> None:
    params = [make(shape=(4095,)), make(shape=(1,))]
    opt = optim.AdamW([{"params": params[:1]}, {"params": params[1:], "min_8bit_size": 0}], optim_bits=4, target=target)
    train(opt)
    assert all(opt.state[param]["exp_avg"].dtype is torch.float32 for param in params)


# Checkpoints


@pytest.mark.parametrize("before", ["fp32", "int8", "int4", "normal4", "fp8", "companded8", "bf16", "fp16"])
@pytest.mark.parametrize("after", ["fp32", "int8", "int4", "normal4", "fp8", "companded8", "bf16", "fp16"])
def test_a_checkpoint_of_another_codec_is_stored_anew(before: str, after: str) -> None:
    old, new = make(), make()
    first = optim.AdamW([old], codec=before, target="torch")
    train(first)
    second = optim.AdamW([new], codec=after, target="torch")
    lossy = after not in (before, "fp32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second.load_state_dict(first.state_dict())
    said = [str(warning.message) for warning in caught]
    assert len(said) == int(lossy), said
    if lossy:
        assert f"AdamW: this checkpoint stores states as {CODECS[before]}" in said[0]
        assert f"stored as {CODECS[after]}" in said[0]
    train(second, 1)
    assert second.state[new]["exp_avg"].dtype is getattr(torch, CODECS[after].storage)
    assert float(second.state[new]["step"]) == 4


def test_a_checkpoint_of_another_block_size_is_stored_anew(target: str) -> None:
    old, new = make(), make()
    first = optim.AdamW([old], optim_bits=8, block_size=64, target=target)
    train(first)
    second = optim.AdamW([new], optim_bits=8, target=target)
    with pytest.warns(
        UserWarning, match="as int8 in blocks of 64; from the next step on they are stored as int8 in blo"
    ):
        second.load_state_dict(first.state_dict())
    train(second, 1)
    assert second.state[new]["exp_avg_absmax"].numel() == 22


@pytest.mark.parametrize("codec", CODED)
def test_resuming_is_bit_exact(codec: str, target: str, tmp_path: Any) -> None:
    whole, part = make(), make()
    straight = optim.AdamW([whole], codec=codec, target=target)
    train(straight, 3, seed=1)
    train(straight, 2, seed=2)
    first = optim.AdamW([part], codec=codec, target=target)
    train(first, 3, seed=1)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = optim.AdamW([part], codec=codec, target=target)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, 2, seed=2)
    assert torch.equal(whole, part)


@pytest.mark.parametrize("rounding", ROUNDED)
def test_resuming_keeps_what_lies_beside_a_parameter(rounding: str, target: str, tmp_path: Any) -> None:
    whole, part = make(torch.bfloat16), make(torch.bfloat16)
    settings: dict[str, Any] = {"rounding": rounding, "lr": 1e-4, "target": target}
    straight = optim.AdamW([whole], **settings)
    train(straight, 3, seed=1)
    train(straight, 2, seed=2)
    first = optim.AdamW([part], **settings)
    train(first, 3, seed=1)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = optim.AdamW([part], **settings)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, 2, seed=2)
    assert torch.equal(whole, part)


@pytest.mark.parametrize("before", ["kahan", "split8", "split16"])
@pytest.mark.parametrize("after", ["kahan", "split8", "split16", "nearest"])
def test_another_rounding_takes_over_what_was_kept(before: str, after: str) -> None:
    from optgen.runtime.states.torch_rounding import decode_parameter

    param = make(torch.bfloat16)
    opt = optim.AdamW([param], rounding=before, lr=1e-5, target="torch")
    train(opt)
    value = decode_parameter(PARAMETER_CODECS[before], param.detach(), opt.state[param]["param_compensation"])
    opt.param_groups[0]["rounding"] = after
    opt.param_groups[0]["lr"] = 0.0
    opt.param_groups[0]["weight_decay"] = 0.0
    train(opt, 1)
    kept = opt.state[param].get("param_compensation")
    assert (kept is None) == (after == "nearest")
    now = decode_parameter(PARAMETER_CODECS[after], param.detach(), kept)
    places = {"kahan": 2.0**-17, "split8": 2.0**-16, "split16": 2.0**-16, "nearest": 2.0**-8}
    assert ((now - value).abs() <= value.abs() * places[after] + 2.0**-126).all()


# Roundings


@pytest.mark.parametrize("rounding", ["kahan", "split8", "split16", "stochastic"])
def test_small_updates_are_not_lost(rounding: str, target: str) -> None:
    """A hundred updates, each far below half of the parameter's last place, add up."""
    param = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    opt = optim.AdamW([param], rounding=rounding, lr=1e-4, weight_decay=0.0, target=target)
    plain = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    lost = optim.AdamW([plain], lr=1e-4, weight_decay=0.0, target=target)
    for _ in range(100):
        for one in (param, plain):
            one.grad = torch.ones_like(one)
        opt.step()
        lost.step()
    assert (plain == 1).all()  # 1e-4 is less than half of bfloat16's last place below 1, 2^-9
    # The mean of stochastic rounding: a step rounds by at most 2^-8, independently, so that 4096 elements over 100
    # steps stray by sqrt(100 / 4096) * 2^-9 = 0.0003 (one standard deviation at most); six of them are allowed.
    allowed = 0.002 if rounding == "stochastic" else 2.0**-9
    assert abs(param.float().mean().item() - 0.99) <= allowed


def test_draws_follow_from_the_seed(target: str) -> None:
    def result(seed: int) -> torch.Tensor:
        param = make(torch.bfloat16)
        train(optim.AdamW([param], rounding="stochastic", seed=seed, lr=1e-3, target=target))
        return param.detach().clone()

    assert torch.equal(result(1), result(1))
    assert not torch.equal(result(1), result(2))


def test_parameters_and_steps_have_draws_of_their_own(target: str) -> None:
    """Two equal parameters in one step, and one parameter in two steps, are rounded down at unrelated places."""
    params = [torch.nn.Parameter(torch.ones(100_000, dtype=torch.bfloat16)) for _ in range(2)]
    opt = optim.AdamW(params, rounding="stochastic", lr=2.0**-10, weight_decay=0.0, target=target)
    moved = []
    for _ in range(2):
        for param in params:
            param.data.fill_(1)
            param.grad = torch.ones_like(param)
        opt.step()
        moved.append([(param.detach() != 1).float() for param in params])
    # The last place below 1 is 2^-8, so that a quarter moves; two that are unrelated both move in a sixteenth, with a
    # standard deviation of sqrt(1/16 * 15/16 / 100000) = 0.00077: six of them are allowed.
    for one, other in ((moved[0][0], moved[0][1]), (moved[0][0], moved[1][0]), (moved[0][1], moved[1][0])):
        assert abs(float(one.mean()) - 1 / 4) < 0.0083
        assert abs(float((one * other).mean()) - 1 / 16) < 0.0047


@pytest.mark.parametrize("rounding", ROUNDED)
def test_targets_agree_bit_for_bit(rounding: str, target: str) -> None:
    results = []
    for where in (target, "torch"):
        params = [make(torch.bfloat16), make(torch.bfloat16, (257,)), make(torch.bfloat16, ())]
        opt = optim.SGD if hasattr(optim, "SGD") else optim.LARS
        more = {} if hasattr(optim, "SGD") else {"max_unorm": 0.0}
        train(opt(params, lr=1e-2, momentum=0.9, rounding=rounding, target=where, **more))
        results.append([param.detach().clone() for param in params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
