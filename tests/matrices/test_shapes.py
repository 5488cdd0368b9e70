"""Rules whose states are matrices of shapes of their own: on every target, in few bits, against float64."""

from __future__ import annotations

from typing import Any

import optgen_optim
import pytest
import torch
from support.targets import ready
from torch import Tensor, nn

import optgen
from matrices.small import Rule, apollo, dion, followed, galore, galore_adafactor, shampoo, soap

SHAPES = ((24, 40), (40, 24), (16, 16), (3, 30))
TARGETS = ("torch", "cpu", "cuda")
STEPS = 7


def loaded(name: str) -> Any:
    return getattr(optgen_optim, name)


def gradients(seed: int, shapes: Any = SHAPES, steps: int = STEPS) -> list[list[Tensor]]:
    """Of every shape, those of all steps."""
    sources = [torch.Generator().manual_seed(100 * seed + index) for index in range(len(shapes))]
    pairs = zip(shapes, sources, strict=True)
    return [[torch.randn(shape, generator=source) for _ in range(steps)] for shape, source in pairs]


def trained(
    cls: Any, target: str, shapes: Any = SHAPES, steps: int = STEPS, **settings: Any
) -> tuple[list[Tensor], Any]:
    params = [nn.Parameter(grads[0].clone()) for grads in gradients(0, shapes)]
    with ready(target) as chosen:
        opt = cls(params, target=chosen, **settings)
        for grads in zip(*gradients(1, shapes, steps), strict=True):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            opt.step()
    return [param.detach() for param in params], opt


def assert_follows(found: list[Tensor], rule: Rule, shapes: Any = SHAPES, steps: int = STEPS) -> None:
    starts, grads = gradients(0, shapes), gradients(1, shapes, steps)
    for position, (param, start, own) in enumerate(zip(found, starts, grads, strict=True)):
        right = followed(rule, start[0].double().numpy(), [g.double().numpy() for g in own], position)
        worst = abs(param.double().numpy() - right.param).max()
        assert worst <= right.error, (tuple(param.shape), worst, right.error)
        assert right.error < 0.02 * abs(right.param - start[0].double().numpy()).max(), "the bound says nothing"


GALORE = {"rank": 4, "update_proj_gap": 3}


@pytest.mark.parametrize("target", TARGETS)
def test_galore_follows_the_formula(target: str) -> None:
    """Tall, wide, square and of fewer rows than the rank, with two refreshes on the way."""
    found, opt = trained(loaded("GaLoreAdamW"), target, weight_decay=0.1, **GALORE)
    assert_follows(found, galore(rank=4, gap=3, weight_decay=0.1))
    shapes = [{name: tuple(value.shape) for name, value in entry.items()} for entry in opt.state.values()]
    assert shapes[0] == {"step": (), "basis": (4, 24), "exp_avg": (40, 4), "exp_avg_sq": (40, 4)}
    assert shapes[3] == {"step": (), "basis": (3, 3), "exp_avg": (30, 3), "exp_avg_sq": (30, 3)}


PROJECTED = {"rank": 4, "gap": 3}
SQUARE = ((16, 16), (9, 9))
CASES: dict[str, tuple[str, dict[str, Any], Rule, Any]] = {
    "galore, as in 8 bits": (
        "GaLoreAdamW8bit", {**GALORE, "weight_decay": 0.0, "min_8bit_size": 1000},
        galore(**PROJECTED, corrected_eps=True, eps=1e-8), SHAPES,
    ),
    "galore, a basis a step": (
        "GaLoreAdamW", {"rank": 2, "update_proj_gap": 1}, galore(rank=2, gap=1), SHAPES,
    ),
    "galore adafactor": (
        "GaLoreAdafactor", {**GALORE, "weight_decay": 0.1},
        galore_adafactor(**PROJECTED, weight_decay=0.1), SHAPES,
    ),
    "galore adafactor, averaged": (
        "GaLoreAdafactor",
        {**GALORE, "beta1": 0.9, "lr": 1e-2, "relative_step": False, "scale_parameter": False},
        galore_adafactor(**PROJECTED, beta1=0.9, lr=1e-2, scale_parameter=False), SHAPES,
    ),
    "apollo": ("APOLLO", {**GALORE, "weight_decay": 0.1}, apollo(**PROJECTED, weight_decay=0.1), SHAPES),
    "apollo, singular vectors": (
        "APOLLO", {**GALORE, "proj": "svd"}, apollo(**PROJECTED, random=False), SHAPES,
    ),
    "apollo mini": (
        "APOLLOMini", {"update_proj_gap": 3},
        apollo(rank=1, gap=3, channel=False, scale=128.0), SHAPES,
    ),
    "apollo, without a limit": (
        "APOLLO", {**GALORE, "scale": 4.0, "disable_nl": True}, apollo(**PROJECTED, scale=4.0, limited=False),
        SHAPES,
    ),
    "apollo, the factor first": (
        "APOLLO", {**GALORE, "scale": 4.0, "scale_front": True}, apollo(**PROJECTED, scale=4.0, front=True),
        SHAPES,
    ),
    "soap": ("SOAP", {"precondition_frequency": 2}, soap(frequency=2), SQUARE),
    "shampoo": ("Shampoo", {"eps": 1e-2}, shampoo(eps=1e-2), SHAPES),
    "shampoo, averaged": (
        "Shampoo", {"eps": 1e-2, "betas": (0.9, 0.99), "precondition_frequency": 3, "weight_decay": 0.1},
        shampoo(eps=1e-2, betas=(0.9, 0.99), frequency=3, weight_decay=0.1), SHAPES,
    ),
    "shampoo, not grafted": (
        "Shampoo", {"eps": 1e-2, "grafting": "none", "use_bias_correction": False},
        shampoo(eps=1e-2, grafting="none", corrected=False), SHAPES,
    ),
    "dion": ("Dion", {"rank": 4}, dion(rank=4), SHAPES),
}  # fmt: skip


for side in ("reverse_std", "right", "left"):
    GIVEN: dict[str, Any] = {**GALORE, "proj_type": side}
    CASES |= {
        f"galore, {side}": ("GaLoreAdamW", GIVEN, galore(**PROJECTED, proj_type=side), SHAPES),
        f"galore adafactor, {side}": (
            "GaLoreAdafactor", GIVEN, galore_adafactor(**PROJECTED, proj_type=side), SHAPES,
        ),
        f"apollo, {side}": ("APOLLO", GIVEN, apollo(**PROJECTED, proj_type=side), SHAPES),
        f"apollo, one factor, {side}": (
            "APOLLO", {**GIVEN, "proj": "svd", "scale_type": "tensor"},
            apollo(**PROJECTED, proj_type=side, random=False, channel=False), SHAPES,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("target", ["torch", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_rules_follow_their_formulas(case: str, target: str) -> None:
    name, settings, rule, shapes = CASES[case]
    found, _ = trained(loaded(name), target, shapes, **settings)
    assert_follows(found, rule, shapes)


@pytest.mark.parametrize("settings", [{}, {"optim_bits": 16}, {"optim_bits": 8}, {"optim_bits": 4}], ids=str)
def test_targets_agree(settings: dict[str, Any]) -> None:
    small = {"min_8bit_size": 0} if settings else {}
    results = [trained(loaded("GaLoreAdamW"), target, **GALORE, **settings, **small) for target in TARGETS]
    (first, opt), *others = results
    for found, other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))
        for entry, theirs in zip(opt.state.values(), other.state.values(), strict=True):
            assert all(torch.equal(entry[key].cpu(), theirs[key].cpu()) for key in entry)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor", "APOLLO", "APOLLOMini8bit"])
def test_each_side_has_its_states(name: str, target: str) -> None:
    """Bit for bit: "std" and "reverse_std" are "left" and "right" of each shape, with states of that side."""
    settings = {"update_proj_gap": 3, "min_8bit_size": 0} if "8bit" in name else {"update_proj_gap": 3}
    settings |= {} if "Mini" in name else {"rank": 4}
    found: dict[str, Any] = {}
    for side in ("left", "right", "std", "reverse_std"):
        found[side] = trained(loaded(name), target, **settings, proj_type=side)
    for i, (rows, cols) in enumerate(SHAPES):
        std, other = ("right", "left") if rows >= cols else ("left", "right")
        for side, same in (("std", std), ("reverse_std", other)):
            assert torch.equal(found[side][0][i], found[same][0][i])
            (_, first), (_, second) = (list(found[each][1].state.items())[i] for each in (side, same))
            assert all(torch.equal(first[key], second[key]) for key in first)
        entry = list(found["left"][1].state.values())[i]
        own = min(1 if "Mini" in name else 4, rows, cols)
        assert entry["basis"].shape == (own, rows)
        if "exp_avg" in entry:
            assert entry["exp_avg"].shape == (cols, own)


def test_a_side_that_changes_needs_new_states() -> None:
    """As another rank does; a checkpoint brings its own, and goes on bit for bit."""
    whole, _ = trained(loaded("GaLoreAdamW"), "cpu", **GALORE, proj_type="reverse_std")
    half, first = trained(loaded("GaLoreAdamW"), "cpu", steps=STEPS - 1, **GALORE, proj_type="reverse_std")
    params = [nn.Parameter(x.clone()) for x in half]
    opt = loaded("GaLoreAdamW")(params, target="cpu", **GALORE)
    opt.load_state_dict(first.state_dict())
    assert opt.param_groups[0]["proj_type"] == "reverse_std"
    for param, own in zip(params, gradients(1), strict=True):
        param.grad = own[STEPS - 1]
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))
    opt.param_groups[0]["proj_type"] = "std"
    before = [param.detach().clone() for param in params]
    with pytest.raises(ValueError, match="basis"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


@pytest.mark.parametrize("name", ["GaLoreAdamW", "APOLLO"])
def test_both_sides_at_once_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"proj_type='full' would project both dimensions.*'std' of the same rank"):
        loaded(name)([nn.Parameter(torch.ones(3, 3))], proj_type="full")
    with pytest.raises(ValueError, match="proj_type"):
        loaded(name)([nn.Parameter(torch.ones(3, 3))], proj_type="up")


@pytest.mark.parametrize("name", ["SOAP", "Shampoo"])
def test_blocks_of_rows_have_smaller_factors(name: str) -> None:
    """Bytes a parameter of a matrix of 4 to 1 with and without, in place of limits of long sides."""
    grad = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    bytes_each = []
    for blocks in (1, 4):
        param = nn.Parameter(torch.zeros(256, 64))
        opt = loaded(name)([param], target="torch", row_blocks=blocks)
        param.grad = grad.clone()
        opt.step()
        matrices = [opt.state[param][state.name] for state in opt.rule.matrix_states]
        bytes_each.append(round(sum(value.numel() * value.element_size() for value in matrices) / param.numel()))
    assert bytes_each == [42, 24]


def test_small_states_keep_their_precision() -> None:
    """`min_8bit_size` counts the numbers of the state, not those of the parameter."""
    _, opt = trained(loaded("GaLoreAdamW"), "cpu", steps=1, optim_bits=8, min_8bit_size=150, **GALORE)
    assert [entry["exp_avg"].dtype for entry in opt.state.values()] == [torch.uint8] * 2 + [torch.float32] * 2
    assert {entry["basis"].dtype for entry in opt.state.values()} == {torch.float32}


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_resumes_bit_for_bit(bits: int) -> None:
    cls, settings = loaded("GaLoreAdamW"), {**GALORE, "optim_bits": bits}
    if bits < 32:
        settings["min_8bit_size"] = 0
    whole, _ = trained(cls, "cpu", **settings)
    half, first = trained(cls, "cpu", steps=5, **settings)
    params = [nn.Parameter(x.clone()) for x in half]
    opt = cls(params, target="cpu", **settings)
    opt.load_state_dict(first.state_dict())
    for grads in list(zip(*gradients(1), strict=True))[5:]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))


def test_a_checkpoint_of_another_rank_brings_it() -> None:
    cls = loaded("GaLoreAdamW")
    _, opt = trained(cls, "cpu", **GALORE)
    other = cls([nn.Parameter(torch.zeros(shape)) for shape in SHAPES], rank=2)
    saved = opt.state_dict()
    other.load_state_dict(saved)
    assert other.param_groups[0]["rank"] == 4
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"][:, :2].clone()
    with pytest.raises(ValueError, match=r"parameter 0: exp_avg has shape \(40, 2\), not \(40, 4\)"):
        other.load_state_dict(saved)


def test_a_rank_of_one_parameter_comes_with_its_checkpoint() -> None:
    cls = loaded("GaLoreAdamW")
    params = [nn.Parameter(torch.ones(12, 8)) for _ in range(2)]
    opt, other = (cls(params, rank=6, target="cpu") for _ in range(2))
    opt.override(params[0], rank=4)
    for param in params:
        param.grad = torch.randn(12, 8)
    opt.step()
    other.load_state_dict(opt.state_dict())
    other.step()
    assert [tuple(other.state[param]["exp_avg"].shape) for param in params] == [(12, 4), (12, 6)]


def test_a_rank_that_changes_is_refused() -> None:
    _, opt = trained(loaded("GaLoreAdamW"), "cpu", **GALORE)
    opt.param_groups[0]["rank"] = 3
    with pytest.raises(ValueError, match=r"state 'basis' has shape \(4, 24\), not \(3, 24\)"):
        opt.step()


@pytest.mark.parametrize("target", TARGETS)
def test_a_matrix_that_is_not_finite_is_left_and_named(target: str) -> None:
    cls = loaded("GaLoreAdamW")
    before, opt = trained(cls, target, SHAPES[:2], **GALORE)
    starts = [value.clone() for value in before]
    bad, good = opt.param_groups[0]["params"]
    states = {key: value.clone() for key, value in opt.state[bad].items() if key != "step"}
    bad.grad[2, 3] = float("nan")
    with ready(target), pytest.warns(UserWarning, match=r"galore: parameter 0 of shape \(24, 40\) was left as it was"):
        opt.step()
    assert torch.equal(bad, starts[0])
    assert all(torch.equal(opt.state[bad][key], value) for key, value in states.items())
    assert not torch.equal(good, starts[1])
    assert opt.state[good]["step"] == STEPS + 1


def test_within_backward() -> None:
    cls, results = loaded("GaLoreAdamW"), []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 20, bias=False), nn.Tanh(), nn.Linear(20, 12, bias=False))
        opt = cls(model.parameters(), fused_backward=fused, target="cpu", **GALORE)
        for _ in range(4):
            opt.zero_grad()
            model(torch.eye(12)).square().mean().backward()
            opt.step()
        results.append([param.detach().clone() for param in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Faults of the originals that do not recur


def stepped(cls: Any, params: list[Any], grads: list[list[Tensor]], **settings: Any) -> Any:
    """An optimizer after steps on these gradients, those of a step together."""
    opt = cls(params, target="cpu", **settings)
    for own in grads:
        for param, grad in zip(params, own, strict=True):
            param.grad = grad.clone()
        opt.step()
    return opt


def test_a_first_gradient_of_zero_locks_nothing() -> None:
    """APOLLO's limit of growth would begin at 0: LoRA's first matrix has such a gradient."""
    generator = torch.Generator().manual_seed(1)
    grads = [[torch.zeros(12, 20)], *([torch.randn(12, 20, generator=generator)] for _ in range(20))]
    late, early = (nn.Parameter(torch.zeros(12, 20)) for _ in range(2))
    stepped(loaded("APOLLO"), [late], grads, rank=4)
    stepped(loaded("APOLLO"), [early], grads[1:], rank=4)
    assert 0.5 < float(late.detach().norm() / early.detach().norm()) < 2


def test_projections_in_few_bits_train_however_small() -> None:
    """bitsandbytes leaves states below 4096 numbers in 32 bits, and galore_torch's 8-bit rule then does not train."""
    grads = [[torch.randn(12, 20, generator=torch.Generator().manual_seed(i))] for i in range(3)]
    for least in (0, 4096):
        param = nn.Parameter(torch.zeros(12, 20))
        opt = stepped(loaded("GaLoreAdamW"), [param], grads, rank=4, optim_bits=8, min_8bit_size=least)
        assert float(param.detach().abs().max()) > 1e-4
        assert opt.state[param]["exp_avg"].dtype is (torch.uint8 if least == 0 else torch.float32)


def test_layers_of_one_shape_have_a_basis_each() -> None:
    grads = [[torch.ones(12, 20)] * 2]
    params = [nn.Parameter(torch.zeros(12, 20)) for _ in range(2)]
    for fused in (False, True):
        opt = loaded("APOLLO")(params, target="cpu", rank=4, fused_backward=fused)
        if fused:
            (params[0].sum() + params[1].sum()).backward()
        else:
            for param, grad in zip(params, *grads, strict=True):
                param.grad = grad
        opt.step()
        first, second = (opt.state[param]["basis"] for param in params)
        assert not torch.equal(first, second)
        params = [nn.Parameter(torch.zeros(12, 20)) for _ in range(2)]


def test_random_bases_follow_from_the_seed() -> None:
    grads = [[torch.ones(12, 20)]] * 3
    bases = []
    for seed in (0, 0, 1):
        param = nn.Parameter(torch.zeros(12, 20))
        opt = stepped(loaded("APOLLO"), [param], grads, rank=4, seed=seed, update_proj_gap=2)
        bases.append(opt.state[param]["basis"])
    assert torch.equal(bases[0], bases[1])
    assert not torch.equal(bases[0], bases[2])
    assert 0.3 < float(bases[0].std()) < 0.7  # 1 over the root of the rank


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("GaLoreAdamW", {"rank": 8}),
        ("APOLLO", {"rank": 8, "proj": "svd"}),
        ("GaLoreAdafactor", {"rank": 8}),
        ("Dion", {"rank": 8}),
        ("SOAP", {"precondition_frequency": 2}),
        ("Shampoo", {"eps": 1e-3}),
    ],
)
def test_gradients_of_low_rank_are_no_trouble(name: str, settings: dict[str, Any]) -> None:
    """As those of LoRA: what a rule adds in the directions that they do not have stays finite and small."""
    generator = torch.Generator().manual_seed(2)
    param = nn.Parameter(torch.zeros(24, 16))
    pairs = [[torch.randn(size, 2, generator=generator) for size in (24, 16)] for _ in range(5)]
    stepped(loaded(name), [param], [[a @ b.mT] for a, b in pairs], lr=None if "Adaf" in name else 1e-2, **settings)
    assert 0 < float(param.detach().abs().max()) < 1
    zero = nn.Parameter(torch.ones(24, 16))
    stepped(loaded(name), [zero], [[torch.zeros(24, 16)]] * 3, weight_decay=0.0, **settings)
    assert torch.equal(zero, torch.ones(24, 16))


def test_bases_stay_orthogonal() -> None:
    param = nn.Parameter(torch.zeros(24, 16))
    grads = [[torch.randn(24, 16, generator=torch.Generator().manual_seed(i))] for i in range(52)]
    opt = stepped(loaded("SOAP"), [param], grads, precondition_frequency=1)
    for name in ("row_basis", "col_basis"):
        basis = opt.state[param][name].double()
        assert float((basis.mT @ basis - torch.eye(len(basis))).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["GaLoreAdamW", "GaLoreAdafactor"])
def test_directions_that_a_gradient_has_not_are_left_alone(name: str) -> None:
    """Singular vectors of rounding would be scaled up as any other: the original moves in all of them."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.randn(size, 2, generator=generator) for size in (24, 16))
    param = nn.Parameter(torch.zeros(24, 16))
    stepped(loaded(name), [param], [[left @ right.mT]] * 3, rank=8)
    own = torch.linalg.qr(right.double())[0]
    moved = param.detach().double()
    assert float((moved - moved @ own @ own.mT).norm() / moved.norm()) < 1e-5


def test_the_reference_follows_the_formulas() -> None:
    """`optgen.reference`, which evaluates the specs in float64."""
    for case, (name, settings, rule, shapes) in CASES.items():
        left_out = ("min_8bit_size",)
        given = {key: value for key, value in settings.items() if key not in left_out}
        evaluated, state = optgen.reference("specs", name, **given), None
        params = [grads[0].double() for grads in gradients(0, shapes)]
        for grads in zip(*gradients(1, shapes), strict=True):
            params, state = evaluated.step(params, [grad.double() for grad in grads], state)
        for position, (param, start) in enumerate(zip(params, gradients(0, shapes), strict=True)):
            own = [grad.double().numpy() for grad in gradients(1, shapes)[position]]
            right = rule(start[0].double().numpy(), own, position)
            assert abs(param.numpy() - right).max() < 1e-9, case
