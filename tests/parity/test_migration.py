"""docs/migration.md: every row of its tables, shown on the other library and on ours, or by the test named here."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optgen_optim as optim
import pytest
import torch
from torch import Tensor, nn

bnb = pytest.importorskip("bitsandbytes")
theirs = bnb.optim

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
SHAPE = (70, 64)
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
ROWS: dict[str, Callable[[], None]] = {}
ELSEWHERE = {  # rows that other tests show: their files, and what they are called
    "names of classes": ("parity/test_drop_in.py", "test_every_name_is_there"),
    "positional arguments, and defaults": (
        "parity/test_drop_in.py",
        "test_arguments_have_the_same_places_and_defaults",
    ),
    "messages": ("test_signatures.py", "test_messages_that_others_test_for"),
    "a step of a class with 32-bit states": (
        "parity/test_bitsandbytes_checkpoints.py",
        "test_in_32_bits_it_goes_on_as_one_run",
    ),
    "8-bit states": ("parity/test_bitsandbytes_rules.py", "test_equals_bitsandbytes_8bit"),
    "checkpoints with 32- and 8-bit states": (
        "parity/test_bitsandbytes_checkpoints.py",
        "test_there_and_back_nothing_is_lost",
    ),
    "`register_parameters`, `override_config`, `register_module_override`": (
        "parity/test_drop_in.py",
        "test_the_two_calls_as_its_documentation_has_them",
    ),
    **dict.fromkeys(
        (
            "`adamw`",
            "`optimizer` with `Optimizer8bit`, `Optimizer1State`, `Optimizer2State`, `MockArgs`",
            "`check_overrides`, `fill_qmap`, `get_config`, `get_state_buffer`, `init_state`, `prefetch_state`, "
            "`to_gpu`, `update_step` of optimizers",
            "`initialize` of GlobalOptimManager",
            "`COMPILED_WITH_CUDA`, in older versions",
        ),
        ("parity/test_drop_in.py", "test_every_public_name_is_there_or_on_the_page"),
    ),
    "`torch.optim.Muon(params, lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)`": (
        "matrices/test_muon.py",
        "test_is_torchs_rule",
    ),
    "muon-optimizer and the file of K. Jordan: `Muon(params, lr=0.02, weight_decay=0, momentum=0.95)`": (
        "matrices/test_muon.py",
        "test_what_has_no_gradient_stays",
    ),
    "`MuonWithAuxAdam(groups)`, `use_muon` in groups": (
        "runtime/several/test_models.py",
        "test_muon_trains_beside_another_rule",
    ),
    **dict.fromkeys(
        (
            "Moonshot's, `moonlight`",
            'dion\'s `Muon`: `adjust_lr="rms_norm"`, `"spectral_norm"`; `flatten`, `num_heads`',
            'timm\'s `Muon`: `adjust_lr_fn="rms_to_rms"`, `algo="adamuon"`, quintic coefficients',
        ),
        ("matrices/test_muon.py", "test_iterations_and_scales"),
    ),
    "pytorch_optimizer's `MuonClip`: `step(attention_max_logits={name: logits})`, `attention_name` and `qk_clip` in "
    "groups": ("parity/test_muon_kin.py", "test_clipped_heads_are_those_of_pytorch_optimizer"),
    '`GaLoreAdamW([{"params": others}, {"params": targets, "rank": 128, "update_proj_gap": 200, "scale": 0.25}])`, '
    "`GaLoreAdamW8bit`, `GaLoreAdafactor`": ("matrices/test_originals.py", "test_galore"),
    **dict.fromkeys(
        (
            "`APOLLOAdamW` with groups of `rank`, `proj`, `scale_type`, `scale`, `update_proj_gap`",
            "`scale_front`, `disable_nl` of apollo-torch's constructor",
        ),
        ("matrices/test_originals.py", "test_apollo"),
    ),
    '`proj_type`: `"std"`, `"reverse_std"`, `"right"`, `"left"`': ("matrices/test_originals.py", "test_galore"),
    "an optimizer for each parameter, stepped in hooks of backward": (
        "matrices/test_shapes.py",
        "test_within_backward",
    ),
    "Ctrl-C in the middle of a step": (
        "runtime/step/test_interrupts.py",
        "test_a_step_is_finished_wherever_it_is_interrupted",
    ),
    "`RMSprop(centered=True)` on equal gradients": (
        "parity/test_torch_rules.py",
        "test_a_variance_is_never_below_zero",
    ),
}


def row(label: str) -> Callable[[Callable[[], None]], None]:
    def add(check: Callable[[], None]) -> None:
        assert label not in ROWS
        ROWS[label] = check

    return add


def rows_of_the_page() -> list[str]:
    """The first cells of all tables but those that are for others: test_anchors.py, settings/test_keywords.py."""
    parts = TEXT.split("\n## ")
    shown = [
        part for part in parts if not part.startswith(("Arguments that differ\n", "Keywords of other libraries\n"))
    ]
    lines = [line for part in shown for line in part.split("\n") if line.startswith("|")]
    cells = [re.split(r"\s+\|\s+", line.strip("| "))[0] for line in lines]
    heads = {cells[i - 1] for i, line in enumerate(lines) if set(line) <= {"|", "-"}}
    return [cell for cell, line in zip(cells, lines, strict=True) if cell not in heads and not set(line) <= {"|", "-"}]


def test_every_row_has_a_test() -> None:
    page = rows_of_the_page()
    assert len(page) == len(set(page)) > 30
    assert set(page) == ROWS.keys() | ELSEWHERE.keys()
    for file, name in ELSEWHERE.values():
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def run(library: Any, name: str, steps: int = 3, start: Tensor | None = None, **settings: Any) -> Tensor:
    """A parameter after some steps; `group` are keys of its param group."""
    generator = torch.Generator().manual_seed(1)
    param = nn.Parameter(torch.randn(SHAPE, generator=generator) if start is None else start)
    group = settings.pop("group", {})
    settings |= {"target": "torch"} if library is optim else {}
    opt = getattr(library, name)([{"params": [param], **group}], **settings)
    for _ in range(steps):
        param.grad = torch.randn(SHAPE, generator=generator)
        opt.step()
    return param.detach()


def acts(library: Any, name: str, base: Mapping[str, Any], **change: Any) -> bool:
    """Check whether a change of settings makes any difference."""
    return not torch.equal(run(library, name, **base), run(library, name, **base, **change))


def ignored_there(name: str, base: Mapping[str, Any], **change: Any) -> None:
    """It does nothing in bitsandbytes, and something here."""
    assert not acts(theirs, name, base, **change)
    assert acts(optim, name, base, **change)


def refused_there(error: type[Exception], name: str, base: Mapping[str, Any], **change: Any) -> None:
    """It raises in bitsandbytes, and does something here."""
    with pytest.raises(error):
        run(theirs, name, **base, **change)
    assert acts(optim, name, base, **change)


@row("`weight_decay` of Adam")
def adam() -> None:
    assert torch.equal(run(theirs, "Adam", weight_decay=0.1), run(theirs, "AdamW", weight_decay=0.1))
    assert not torch.equal(run(optim, "Adam", weight_decay=0.1), run(optim, "AdamW", weight_decay=0.1))


@row("`nesterov`, `dampening` of SGD and LARS")
def nesterov() -> None:
    for name in ("SGD", "LARS", "SGD8bit", "LARS8bit"):
        ignored_there(name, MOMENTUM, nesterov=True)
        ignored_there(name, MOMENTUM, dampening=0.5)


@row("`momentum=0` of SGD")
def plain_sgd() -> None:
    with pytest.raises(NotImplementedError):
        run(theirs, "SGD", lr=0.1)
    torch.testing.assert_close(run(optim, "SGD", lr=0.1), run(torch.optim, "SGD", lr=0.1))


@row("`momentum` of RMSprop")
def rmsprop_momentum() -> None:
    ignored_there("RMSprop", {}, momentum=0.9)


@row("`centered=True`, `alpha=0` of RMSprop")
def rmsprop_centered() -> None:
    refused_there(NotImplementedError, "RMSprop", {}, centered=True)
    refused_there(NotImplementedError, "RMSprop", {}, alpha=0.0)
    with pytest.raises(ValueError, match="does not support centered=True with 8-bit states"):
        run(optim, "RMSprop8bit", centered=True)


@row("`lr_decay`, `initial_accumulator_value` of Adagrad")
def adagrad() -> None:
    refused_there(ValueError, "Adagrad", {}, lr_decay=0.1)
    refused_there(ValueError, "Adagrad", {}, initial_accumulator_value=0.1)


@row("`amsgrad` with 32-bit states")
def amsgrad() -> None:
    for name in ("AdamW", "AdamW32bit"):
        assert not acts(theirs, name, {"steps": 6}, amsgrad=True)
        assert acts(optim, name, {"steps": 6}, amsgrad=True)


@row("`bias_correction`, `adam_w_mode`, `amsgrad` of LAMB")
def lamb_arguments() -> None:
    ignored_there("LAMB", {}, bias_correction=False)
    ignored_there("LAMB", {"weight_decay": 0.1}, adam_w_mode=False)
    ignored_there("LAMB", {"steps": 6}, amsgrad=True)


@row("LAMB's trust ratio")
def lamb() -> None:
    # A parameter that is longer than its update: cutting does nothing, the paper's rule scales the update up.
    start = 100 * torch.ones(SHAPE)
    settings = {"start": start, "weight_decay": 0.0}
    assert torch.equal(
        run(theirs, "LAMB", **{**settings, "start": start.clone()}),
        run(theirs, "AdamW", **{**settings, "start": start.clone()}),
    )
    cut = run(optim, "LAMB", **{**settings, "start": start.clone()}, trust_ratio="none")
    torch.testing.assert_close(cut, run(optim, "AdamW", **{**settings, "start": start.clone()}))
    scaled = run(optim, "LAMB", **{**settings, "start": start.clone()})
    assert float((scaled - start).norm()) > 50 * float((cut - start).norm())


@row("LAMB8bit and LARS8bit")
def norms_in_8_bits() -> None:
    for name, plain, settings in (("LAMB8bit", "AdamW8bit", {"weight_decay": 0.1}), ("LARS8bit", "SGD8bit", MOMENTUM)):
        assert torch.equal(run(theirs, name, **settings), run(theirs, plain, **settings))
        assert not torch.equal(run(optim, name, **settings), run(optim, plain, **settings))
        wide = run(optim, name.removesuffix("8bit"), **settings)
        torch.testing.assert_close(run(optim, name, **settings), wide, rtol=0.05, atol=0.05)


@row("LAMB and LARS on zeros")
def zeros() -> None:
    for name, settings in (("LAMB", {}), ("LARS", MOMENTUM)):
        assert not run(theirs, name, start=torch.zeros(SHAPE), **settings).any()
        assert run(optim, name, start=torch.zeros(SHAPE), **settings).all()


@row("AdEMAMix32bit")
def ademamix() -> None:
    with pytest.raises(RuntimeError):
        run(theirs, "AdEMAMix32bit")
    assert torch.equal(run(optim, "AdEMAMix32bit"), run(optim, "AdEMAMix"))


@row("`percentile_clipping`, `block_wise`")
def removed() -> None:
    refused_there(TypeError, "AdamW", {"steps": 6}, percentile_clipping=5)
    refused_there(TypeError, "AdamW8bit", {}, block_wise=False)


def bnb_args(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"optim_bits": 32, "min_8bit_size": 4096, "max_unorm": 0.0, "skip_zeros": False} | changes)


@row("`skip_zeros` through `args`")
def skip_zeros() -> None:
    for library, skips in ((theirs, False), (optim, True)):
        param = nn.Parameter(torch.ones(4))
        opt = library.AdamW([param], weight_decay=0.5, args=bnb_args(skip_zeros=True))
        param.grad = torch.zeros(4)
        opt.step()
        assert bool((param == 1).all()) is skips


@row("`args` that lacks attributes")
def args() -> None:
    with pytest.raises(AttributeError):
        run(theirs, "AdamW", args=SimpleNamespace(optim_bits=8))
    assert torch.equal(run(optim, "AdamW", args=SimpleNamespace(optim_bits=8)), run(optim, "AdamW", optim_bits=8))


@row("`optim_bits` of a param group")
def bits_of_a_group() -> None:
    ignored_there("AdamW", {}, group={"optim_bits": 8})
    assert torch.equal(run(optim, "AdamW", group={"optim_bits": 8}), run(optim, "AdamW8bit"))


@row("misspelt key of a param group")
def misspelt() -> None:
    assert not acts(theirs, "AdamW", {}, group={"weigth_decay": 0.5})
    with pytest.raises(ValueError, match="has the key 'weigth_decay'; did you mean 'weight_decay'"):
        run(optim, "AdamW", group={"weigth_decay": 0.5})


@row("`is_paged` of PagedAdam")
def is_paged() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        assert theirs.PagedAdam([nn.Parameter(torch.ones(2))], is_paged=False).is_paged
    with pytest.raises(TypeError, match="is_paged"):
        optim.PagedAdam([nn.Parameter(torch.ones(2))], is_paged=False)


def told(library: Any, params: list[nn.Parameter], key: str, value: Any) -> Any:
    """Manager with an override of the first parameter."""
    manager = library.GlobalOptimManager.get_instance()
    manager.override_config(params[0], key, value)
    manager.register_parameters(params)
    return manager


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Any:
    yield
    theirs.GlobalOptimManager.get_instance().initialize()


@row("setting of an override that the class does not have")
def foreign_setting() -> None:
    params = [nn.Parameter(torch.ones(3))]
    told(theirs, params, "momentum", 0.5)
    opt = theirs.AdamW(params)
    params[0].grad = torch.ones(3)
    opt.step()
    told(optim, params, "momentum", 0.5)
    with pytest.raises(ValueError, match=r"AdamW\.override takes no 'momentum'"):
        optim.AdamW(params)


@row("overrides and other parameters at the same position")
def same_place() -> None:
    for library, moves in ((theirs, True), (optim, False)):
        told(library, [nn.Parameter(torch.ones(3))], "lr", 0.0)
        other = nn.Parameter(torch.ones(3))
        opt = library.AdamW([other], lr=0.5, weight_decay=0.0)
        other.grad = torch.ones(3)
        opt.step()
        assert bool((other == 1).all()) is moves


@row("overrides in checkpoints")
def saved_overrides() -> None:
    for library, kept in ((theirs, False), (optim, True)):
        params = [nn.Parameter(torch.ones(3))]
        told(library, params, "lr", 0.125)
        checkpoint = library.AdamW(params).state_dict()
        assert ("0.125" in str(checkpoint)) is kept


@row("parameters that are views")
def views() -> None:
    for library, stays in ((theirs, False), (optim, True)):
        base = torch.ones(64, 70)
        param = nn.Parameter(base.t())
        opt = library.AdamW([param])
        param.grad = torch.ones(SHAPE)
        opt.step()
        assert not (param == 1).any()
        assert torch.equal(base.t(), param) is stays


def stepped(cls: Any, shape: tuple[int, ...] = SHAPE, **settings: Any) -> Any:
    param = nn.Parameter(torch.ones(shape))
    opt = cls([param], **settings)
    param.grad = torch.ones(shape)
    opt.step()
    return opt


def loads(opt: Any, checkpoint: Any) -> Any:
    """The first parameter's state, after loading."""
    opt.load_state_dict(checkpoint)
    return opt.state[opt.param_groups[0]["params"][0]]


@row("checkpoint of other shapes")
def other_shapes() -> None:
    small = theirs.AdamW([nn.Parameter(torch.ones(4, 3))])
    checkpoint = stepped(theirs.AdamW).state_dict()
    assert loads(small, checkpoint)["state1"].shape == SHAPE
    with pytest.raises(ValueError, match=r"parameter 0: state1 has shape \(70, 64\), not \(4, 3\)"):
        optim.AdamW([nn.Parameter(torch.ones(4, 3))]).load_state_dict(checkpoint)


@row("checkpoint of another class")
def another_class() -> None:
    checkpoint = stepped(theirs.AdamW).state_dict()
    assert "state2" in loads(theirs.SGD([nn.Parameter(torch.ones(SHAPE))], **MOMENTUM), checkpoint)
    with pytest.raises(ValueError, match="parameter 0: state2 is not a state of sgd"):
        optim.SGD([nn.Parameter(torch.ones(SHAPE))], **MOMENTUM).load_state_dict(checkpoint)


@row("float32 states for parameters of 16 bits")
def wide_states() -> None:
    checkpoint = stepped(torch.optim.AdamW).state_dict()
    for library, dtype in ((torch.optim, torch.bfloat16), (optim, torch.float32)):
        opt = library.AdamW([nn.Parameter(torch.ones(SHAPE, dtype=torch.bfloat16))])
        assert loads(opt, checkpoint)["exp_avg"].dtype is dtype


@row("shapes that differ from the checkpoint's")
def torchs_shapes() -> None:
    checkpoint = stepped(torch.optim.AdamW).state_dict()
    assert loads(torch.optim.AdamW([nn.Parameter(torch.ones(4, 3))]), checkpoint)["exp_avg"].shape == SHAPE
    with pytest.raises(ValueError, match=r"parameter 0: exp_avg has shape \(70, 64\), not \(4, 3\)"):
        optim.AdamW([nn.Parameter(torch.ones(4, 3))]).load_state_dict(checkpoint)


@row("states of another optimizer")
def torchs_states() -> None:
    checkpoint = stepped(torch.optim.AdamW).state_dict()
    assert "exp_avg" in loads(torch.optim.SGD([nn.Parameter(torch.ones(SHAPE))], **MOMENTUM), checkpoint)
    with pytest.raises(ValueError, match="parameter 0: sgd has no state exp_avg, exp_avg_sq"):
        optim.SGD([nn.Parameter(torch.ones(SHAPE))], **MOMENTUM).load_state_dict(checkpoint)


@row("key that is misspelt in a param group")
def torchs_keys() -> None:
    assert not acts(torch.optim, "AdamW", {}, group={"weigth_decay": 0.5})
    with pytest.raises(ValueError, match="did you mean 'weight_decay'"):
        run(optim, "AdamW", group={"weigth_decay": 0.5})


def of_trainer(name: str, arguments: str) -> dict[str, Any]:
    """Arguments that Transformers' Trainer makes of its `optim` and `optim_args`."""
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = transformers.TrainingArguments(
            output_dir=tempfile.gettempdir(), optim=name, optim_args=arguments, report_to=[]
        )
        found: dict[str, Any] = transformers.Trainer.get_optimizer_cls_and_kwargs(given)[1]
    return found


DROPPED = [
    ("adafactor", "clip_threshold=2.0", "Adafactor", {"clip_threshold": 2.0}),
    ("adamw_torch", "amsgrad=True", "AdamW", {"amsgrad": True}),
    ("adamw_bnb_8bit", "min_8bit_size=16384", "AdamW8bit", {"min_8bit_size": 16384}),
    ("lion_8bit", "block_wise=False", "Lion8bit", {"block_wise": False}),
]


def _dropped(name: str, arguments: str, cls: str, settings: dict[str, Any]) -> Callable[[], None]:
    def check() -> None:
        assert of_trainer(name, arguments) == of_trainer(name, "")
        group = getattr(optim, cls)([nn.Parameter(torch.ones(2))], **settings).param_groups[0]
        assert settings.items() <= group.items()
        assert f"`{cls}({', '.join(f'{key}={value}' for key, value in settings.items())})`" in TEXT

    return check


for case in DROPPED:
    row(f"`{case[0]}`, `{case[1]}`")(_dropped(*case))


@row("`adamw_torch_8bit`, `block_size=128`")
def texts() -> None:
    assert of_trainer("adamw_torch_8bit", "block_size=128")["block_size"] == "128"
    param = nn.Parameter(torch.ones(2))
    assert optim.AdamW8bit([param], block_size=128).param_groups[0]["block_size"] == 128
    with pytest.raises(ValueError, match="block_size must be one of 0, 32, 64, 128, 256, not '128'"):
        optim.AdamW8bit([param], block_size="128")


@row("any of these, `nonsense=3`")
def nonsense() -> None:
    for name, _, cls, _ in DROPPED:
        assert of_trainer(name, "nonsense=3") == of_trainer(name, "")
        with pytest.raises(TypeError, match="nonsense"):
            getattr(optim, cls)([nn.Parameter(torch.ones(2))], nonsense=3)


@pytest.mark.parametrize("label", ROWS)
def test_row(label) -> None:
    ROWS[label]()


def trained(cls: Any, model: nn.Linear, gradients: list[Tensor], **settings: Any) -> Any:
    """An optimizer of the weight after a step for each gradient."""
    opt = cls(model.parameters(), **settings)
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        opt.step()
    return opt


@pytest.mark.parametrize("library", [theirs, torch.optim, optim], ids=lambda library: library.__name__)
def test_the_lines_at_its_head(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its examples, run with a file that each library has saved after some steps: the next step is as its own."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    cls = getattr(library, "AdamW8bit", library.AdamW)
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(64, 64, generator=generator) for _ in range(4)]
    model = nn.Linear(64, 64, bias=False)
    opt = trained(cls, model, gradients[:3], lr=1e-3, weight_decay=0.01)
    torch.save(opt.state_dict(), "optimizer.pt")

    space: dict[str, Any] = {"model": nn.Linear(64, 64, bias=False), "torch": torch, "bitsandbytes": bnb}
    space["model"].load_state_dict(model.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(blocks[0], space)
    loaded, weight = space["optimizer"], space["model"].weight
    assert type(loaded) is optim.AdamW8bit
    anew = [warning for warning in caught if warning.category is optim.StoredAnewWarning]
    assert len(anew) == (library is torch.optim)  # whose states have 32 bits
    entry, saved = loaded.state[weight], opt.state[model.weight]
    assert float(entry["step"]) == 3
    names = {"exp_avg": "state1", "exp_avg_sq": "state2"} if library is theirs else {}
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(entry[name], saved[names.get(name, name)])

    before = weight.detach().clone()
    for each, one in ((opt, model.weight), (loaded, weight)):
        one.grad = gradients[3].clone()
        each.step()
    assert float(loaded.state[weight]["step"]) == 4
    if library is not torch.optim:  # whose states this class rounds before its first step
        torch.testing.assert_close(weight, model.weight, rtol=0, atol=4 * 2**-24 + 1e-3 * 16 * 2**-24)
    assert not (weight == before).any()


def test_its_other_lines() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    exec(blocks[-1], {"model": nn.Linear(64, 64), "optim": optim, "bitsandbytes": bnb})
