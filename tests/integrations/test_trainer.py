"""Trainer trains a GPT-2 with generated optimizers, saves it, and goes on from there to the same last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import AdamW8bit, GlobalOptimManager
from support.tiny_gpt2 import Text, assert_same, quiet, tiny_gpt2

from optgen.integrations.transformers import SERVED, optimizer

transformers = pytest.importorskip("transformers")

STEPS = 12
ALL = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "bf16": True, "weight_decay": 0.1} | {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "save_steps": STEPS // 2,
    "eval_strategy": "steps",  # before it saves: schedule-free rules then hold their average
    "eval_steps": STEPS // 4,
}
RATES = {"sgd": 0.5, "lion": 3e-3, "schedule_free_sgd": 1.0, "schedule_free_radam": 0.1}  # all others train at 1e-2
# test_lomo.py and test_projected.py train these.
ELSEWHERE = {"lomo", "adalomo", *(name for name, row in SERVED.items() if row.others is not None)}
BRIEF = ["paged_adamw_8bit", "adafactor", "schedule_free_adamw", "adamw_torch_4bit"]


def rate(name: str) -> float:
    return next((value for part, value in RATES.items() if part in name and (part != "sgd" or name == part)), 1e-2)


def trainer(name: str, folder: Path, model: Any, **given: Any) -> Any:
    values = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": rate(name),
    }
    args = transformers.TrainingArguments(**quiet(values | ALL | given))
    made = optimizer(name, args)
    return transformers.Trainer(model, args, train_dataset=Text(), eval_dataset=Text(16), optimizer_cls_and_kwargs=made)


def check_resumes(name: str, folder: Path, dtype: torch.dtype) -> None:
    """A run, and one that begins at its middle with another model: the same weights, states and schedule."""
    whole = trainer(name, folder, tiny_gpt2().to(dtype))
    whole.train()
    assert whole.accelerator.mixed_precision == "bf16"
    logs = [log for log in whole.state.log_history if "loss" in log]
    assert len(logs) == STEPS
    assert max(log["grad_norm"] for log in logs) > whole.args.max_grad_norm  # so that clipping acts
    rates = [log["learning_rate"] for log in logs]
    assert max(rates) == pytest.approx(rate(name))
    assert rates[0] < max(rates) > rates[-1]
    assert logs[-1]["loss"] < whole.train_dataset.ignorance

    resumed = trainer(name, folder, tiny_gpt2(seed=1).to(dtype))
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}"))
    for value in ("loss", "eval_loss"):
        seen = [[log[value] for log in run.state.log_history if value in log] for run in (resumed, whole)]
        assert seen[0] == seen[1]
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), "model")
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")
    assert_same(resumed.lr_scheduler.state_dict(), whole.lr_scheduler.state_dict(), "schedule")


@pytest.mark.parametrize("name", BRIEF)
def test_a_run_resumes_bit_exactly(name: str, tmp_path: Path) -> None:
    check_resumes(name, tmp_path, torch.float32)


def test_a_run_with_weights_of_16_bits_resumes_bit_exactly(tmp_path: Path) -> None:
    check_resumes("stable_adamw", tmp_path, torch.bfloat16)  # which keeps what rounding loses


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(SERVED.keys() - {*BRIEF, *ELSEWHERE}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_run_resumes_bit_exactly(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    check_resumes(name, tmp_path, dtype)


def test_the_checkpoint_is_loaded_safely_and_keeps_embeddings_whole(tmp_path: Path) -> None:
    run = trainer("paged_adamw_8bit", tmp_path, tiny_gpt2(), max_steps=2, save_steps=2)
    run.train()
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert {own["optim_bits"] for own in saved["param_groups"][0]["overrides"].values()} == {32}
    params = [param for group in run.optimizer.param_groups for param in group["params"]]
    places = {id(param): place for place, param in enumerate(params)}
    embeddings = {places[id(run.model.transformer.wte.weight)], places[id(run.model.transformer.wpe.weight)]}
    for place, entry in saved["state"].items():
        small = params[place].numel() < 4096
        assert entry["exp_avg"].dtype is (torch.float32 if small or place in embeddings else torch.uint8), place


def test_clipping_and_accumulation_reach_the_optimizer(tmp_path: Path) -> None:
    """A batch of 8 is two of 4, and a clipped gradient has the norm asked for: what the first step of SGD shows."""
    folders = iter(range(3))

    def moved(**given: Any) -> torch.Tensor:
        model = tiny_gpt2()
        before = torch.cat([param.detach().flatten().double() for param in model.parameters()])
        values = {"bf16": False, "max_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0}
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        whole = {"weight_decay": 0.0, "learning_rate": 1.0, "max_grad_norm": 0.0, "save_strategy": "no"}
        trainer("sgd", tmp_path / str(next(folders)), model, **(values | whole | given)).train()
        return torch.cat([param.detach().flatten().double() for param in model.parameters()]) - before

    one = moved(per_device_train_batch_size=8, gradient_accumulation_steps=1)
    two = moved()
    clipped = moved(max_grad_norm=0.5)
    # Gradients of either are sums of 8 x 63 terms of which each is rounded; 1e-4 is 800 roundings of a float32.
    assert torch.linalg.vector_norm(two - one) <= 1e-4 * torch.linalg.vector_norm(one)
    assert torch.linalg.vector_norm(two) > 0.5
    assert float(torch.linalg.vector_norm(clipped)) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("way", ["optimizer", "class"])
def test_trainer_without_a_factory(way: str, tmp_path: Path) -> None:
    model = tiny_gpt2()
    args = transformers.TrainingArguments(**quiet({"output_dir": str(tmp_path), "max_steps": 2, "learning_rate": 1e-2}))
    given: dict[str, Any] = {"optimizers": (AdamW8bit(model.parameters(), lr=1e-2), None)}
    if way == "class":
        given = {"optimizer_cls_and_kwargs": (AdamW8bit, {"lr": 1e-2})}
    made = transformers.Trainer(model, args, train_dataset=Text(), **given)
    before = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    made.train()
    assert not torch.equal(before, model.transformer.h[0].mlp.c_fc.weight)
    assert made.optimizer.state[model.transformer.h[0].mlp.c_fc.weight]["exp_avg"].dtype is torch.uint8
    assert len(made.state.log_history) > 0
    assert set(made.lr_scheduler.get_last_lr()) == {0.0}  # args' schedule ends at 0
    assert len(made.optimizer.param_groups) == (2 if way == "class" else 1)


def test_a_search_over_hyperparameters_acts(tmp_path: Path) -> None:
    """Trainer sets what a trial tries in its arguments, and makes its optimizer again."""
    run = trainer("adamw_torch", tmp_path, tiny_gpt2())
    run.args.learning_rate, run.args.adam_beta2, run.args.weight_decay = 0.5, 0.75, 0.25
    made = run.create_optimizer()
    groups = made.param_groups
    assert [(group["lr"], group["betas"], group["weight_decay"]) for group in groups] == [
        (0.5, (0.9, 0.75), 0.25),
        (0.5, (0.9, 0.75), 0.0),
    ]


def test_what_is_changed_in_the_arguments_of_the_class_holds(tmp_path: Path) -> None:
    args = transformers.TrainingArguments(**quiet({"output_dir": str(tmp_path)}))
    factory, kwargs = optimizer("adamw_torch", args)
    made = factory()(tiny_gpt2(), **{**kwargs, "lr": 0.125})
    assert made.defaults["lr"] == 0.125


# Updates within backward


WITHIN = {  # every place where it can be asked for
    "argument": {"fused_backward": True},
    "string": {"optim_args": "fused_backward=true"},
    "override": {"overrides": {"*.wte.weight": {"fused_backward": True}}},
}
ALONE = {"max_grad_norm": 0.0, "gradient_accumulation_steps": 1, "bf16": False}
REFUSED = [
    ({"max_grad_norm": 1.0}, r"clips gradients .*\(max_grad_norm=1.0 of .* Pass TrainingArguments\(max_grad_norm=0\)"),
    (
        {"gradient_accumulation_steps": 2},
        r"adds up gradients over 2 backward passes .* Pass TrainingArguments\(gradient_accumulation_steps=1\)",
    ),
    ({"fp16": True}, r"scales the loss \(fp16=True of .* Pass TrainingArguments\(bf16=True\)"),
]


def arguments(folder: Path, **given: Any) -> Any:
    return transformers.TrainingArguments(**quiet({"output_dir": str(folder), "max_steps": 3} | given))


@pytest.mark.parametrize("how", WITHIN)
def test_updates_within_backward_are_refused_where_trainer_needs_gradients(how: str, tmp_path: Path) -> None:
    for given, message in REFUSED:
        with pytest.raises(ValueError, match=r"optimizer\('adamw_torch'\): Trainer " + message):
            optimizer("adamw_torch", arguments(tmp_path, **(ALONE | given)), **WITHIN[how])
    with pytest.raises(ValueError, match=r"max_grad_norm=1\.0"):  # which is what Trainer does by itself
        optimizer("adamw_torch", arguments(tmp_path), **WITHIN[how])
    with pytest.raises(ValueError, match=r"is to be known here.* pass the trainer's arguments, with max_grad_norm=0"):
        optimizer("adamw_torch", lr=1e-3, weight_decay=0.0, **WITHIN[how])
    optimizer("adamw_torch", arguments(tmp_path, **ALONE), **WITHIN[how])


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=["clipping", "accumulation", "scaling"])
def test_what_is_changed_later_is_refused_before_trainer_trains(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """By a search over hyperparameters, in the arguments of the class, and by bitsandbytes' manager."""
    model = tiny_gpt2()
    for asked in ("before", "after", "manager"):
        args = arguments(tmp_path, **ALONE)
        factory, kwargs = optimizer("adamw_torch", args, fused_backward=asked == "before")
        run = transformers.Trainer(model, args, train_dataset=Text(), optimizer_cls_and_kwargs=(factory, kwargs))
        for key, value in given.items():
            setattr(args, key, value)
        if asked == "after":
            kwargs["fused_backward"] = True
        if asked == "manager":
            GlobalOptimManager.get_instance().override_config(model.transformer.wte.weight, "fused_backward", True)
        before = {name: param.detach().clone() for name, param in model.named_parameters()}
        with pytest.raises(ValueError, match=message):
            run.train()
        assert all(torch.equal(before[name], param) for name, param in model.named_parameters())


def test_accumulation_that_accelerate_is_told_of_is_refused(tmp_path: Path) -> None:
    """Trainer takes it over into its arguments when it is made."""
    args = arguments(tmp_path, **ALONE, accelerator_config={"gradient_accumulation_kwargs": {"num_steps": 2}})
    made = optimizer("adamw_torch", args, fused_backward=True)
    run = transformers.Trainer(tiny_gpt2(), args, train_dataset=Text(), optimizer_cls_and_kwargs=made)
    with pytest.raises(ValueError, match="over 2 backward passes"):
        run.train()


def test_updates_within_backward_are_those_of_steps(tmp_path: Path) -> None:
    """Under the arguments that the messages ask for, to the last bit; and no gradient is left for a step."""
    runs = []
    for within in (False, True):
        args = arguments(tmp_path / str(within), **ALONE, learning_rate=1e-2)
        made = optimizer("adamw_torch", args, fused_backward=within)
        run = transformers.Trainer(tiny_gpt2(), args, train_dataset=Text(), optimizer_cls_and_kwargs=made)
        run.train()
        runs.append(run)
    assert_same(dict(runs[1].model.state_dict()), dict(runs[0].model.state_dict()), "model")
    assert_same(runs[1].optimizer.state_dict()["state"], runs[0].optimizer.state_dict()["state"], "states")
    losses = [[log["loss"] for log in run.state.log_history if "loss" in log] for run in runs]
    assert losses[1] == losses[0]
    assert len(losses[0]) == 3
    assert runs[1].optimizer.param_groups[0]["fused_backward"] is True
