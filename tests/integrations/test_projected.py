"""Trainer with GaLore's and APOLLO's names: target modules are projected, and all else is trained as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import CLASSES, CombinedOptimizer
from support.tiny_gpt2 import Text, assert_same, quiet

from optgen.integrations.transformers import SERVED, optimizer

transformers = pytest.importorskip("transformers")

STEPS = 4
NAMES = [name for name, row in SERVED.items() if row.others is not None]
RANK = "rank=4,update_proj_gap=2,scale=1.0"


def tiny_llama(seed: int = 0) -> Any:
    """A model of linear layers."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, pad_token_id=0))


def arguments(folder: Path, name: str, **given: Any) -> Any:
    values = {"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "save_steps": STEPS // 2}
    values |= {"learning_rate": 1e-2, "weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
    values |= {"max_grad_norm": 0.0 if name.endswith("layerwise") else 1.0, "optim": name, "optim_args": RANK}
    return transformers.TrainingArguments(**quiet({**values, "optim_target_modules": ["attn", "mlp"], **given}))


def trainer(name: str, folder: Path, model: Any) -> Any:
    args = arguments(folder, name)
    made = optimizer(args.optim, args)
    return transformers.Trainer(model, args, train_dataset=Text(), optimizer_cls_and_kwargs=made)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumes_bit_exactly(name: str, tmp_path: Path) -> None:
    whole = trainer(name, tmp_path, tiny_llama())
    whole.train()
    opt, row = whole.optimizer.optimizer, SERVED[name]
    assert isinstance(opt, CombinedOptimizer)
    assert [group["rule"] for group in opt.param_groups] == [row.cls, row.others, row.others]
    assert [group["weight_decay"] for group in opt.param_groups] == [0.1, 0.1, 0.0]
    assert opt.param_groups[0]["rank"] == 4
    assert {group["fused_backward"] for group in opt.param_groups} == {name.endswith("layerwise")}
    if "beta1" in row.taken:
        assert {(*group["betas"], group["eps"]) for group in opt.param_groups} == {(0.8, 0.95, 1e-6)}
    weights = {id(m.weight) for n, m in whole.model.named_modules() if "proj" in n and hasattr(m, "weight")}
    assert {id(param) for param in opt.param_groups[0]["params"]} == weights
    logs = [log["loss"] for log in whole.state.log_history if "loss" in log]
    assert logs[-1] < logs[0]
    resumed = trainer(name, tmp_path, tiny_llama(seed=1))
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), "model")
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")


def targets(folder: Path, given: Any) -> int:
    """Number of weights that are projected."""
    args = arguments(folder, "galore_adamw", optim_target_modules=given)
    factory, kwargs = optimizer("galore_adamw", args)
    return len(factory(tiny_llama(), **kwargs).param_groups[0]["params"])


def test_target_modules(tmp_path: Path) -> None:
    assert targets(tmp_path, ["q_proj", r".*\.1\.mlp\..*"]) == 2 + 3
    assert targets(tmp_path, r".*\.0\.self_attn\.[qkv]_proj") == 3
    assert targets(tmp_path, "all-linear") == targets(tmp_path, "all_linear") == 2 * 7 + 1
    wrong: list[tuple[Any, type[Exception], str]] = [
        (None, ValueError, "optim_target_modules says which weights are projected"),
        ([], ValueError, "optim_target_modules says which weights are projected"),
        (["atn", "mlp"], ValueError, "'atn', which matches no linear layer that is trained; "),
        (["q_prj"], ValueError, "did you mean 'q_proj'"),
        (["(q_proj"], ValueError, "which is no regular expression"),
        ([3], TypeError, "optim_target_modules is a list of parts of names"),
    ]
    for given, error, message in wrong:
        with pytest.raises(error, match=message):
            targets(tmp_path, given)
    with pytest.raises(TypeError, match="projects no gradients: leave optim_target_modules out"):
        optimizer("adamw_torch", lr=1e-3, weight_decay=0.0, optim_target_modules=["attn"])


def test_arguments_are_typed_and_checked(tmp_path: Path) -> None:
    def made(text: str, name: str = "galore_adamw") -> dict[str, Any]:
        return optimizer(name, arguments(tmp_path, name, optim_args=text))[1]

    assert made("rank=8,update_proj_gap=50,scale=0.5,proj_type=std")["update_proj_gap"] == 50
    assert made("proj=svd,scale_type=tensor,scale_front=true", "apollo_adamw")["scale_front"] is True
    with pytest.raises(TypeError, match="did you mean 'rank'"):
        made("rnk=8")
    with pytest.raises(TypeError, match="rank must be a whole number"):
        made("rank=8.5")
    with pytest.raises(ValueError, match="rank"):
        made("rank=0")
    for name in NAMES:
        assert made("proj_type=reverse_std", name)["proj_type"] == "reverse_std"
    with pytest.raises(ValueError, match="proj_type='full' would project both dimensions"):
        made("proj_type=full")
    with pytest.raises(ValueError, match="Trainer clips gradients after backward"):
        optimizer("apollo_adamw_layerwise", arguments(tmp_path, "apollo_adamw_layerwise", max_grad_norm=1.0))
    assert {SERVED[name].cls for name in NAMES} <= set(CLASSES)
