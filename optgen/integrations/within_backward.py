"""Refuses trainers that change gradients after backward, when fused_backward=True has applied and freed them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments


RATE_IN_BACKWARD = ("lomo", "adalomo")  # names with which Trainer calls backward(learning_rate=...)


def check_trainer(label: str, args: TrainingArguments | None, settings: Iterable[Mapping[str, Any]]) -> None:
    """Raise if parameters are to be updated within backward under a Trainer that clips, adds up or scales gradients.

    Args:
        label: Beginning of messages.
        args: The trainer's arguments, as they are now.
        settings: Of the class, of groups and of parameters.

    Raises:
        ValueError: naming the argument, and without arguments to look at.
    """
    fused = [own for own in settings if own.get("fused_backward")]
    if not fused:
        return
    freed = "with fused_backward=True each gradient has been applied and freed by then"
    if args is None:
        raise ValueError(
            f"{label}: whether Trainer clips, accumulates or scales gradients is to be known here, since {freed}: pass "
            "the trainer's arguments, with max_grad_norm=0, or leave fused_backward out"
        )
    if args.optim in RATE_IN_BACKWARD:
        name = str(args.optim.value)
        raise ValueError(
            f"{label}: Trainer hands the learning rate to backward while its arguments have optim={name!r}, and only "
            "lomo_optim's optimizers take it there: exchange it once it has chosen the optimizer, "
            "name, args.optim = args.optim, 'sgd'"
        )
    if args.max_grad_norm and not all(own.get("clip_by_last_norm") and own.get("max_grad_norm") for own in fused):
        raise ValueError(
            f"{label}: Trainer clips gradients after backward (max_grad_norm={args.max_grad_norm} of its arguments, "
            f"1.0 by default), and {freed}: nothing would be clipped. Pass TrainingArguments(max_grad_norm=0), or "
            "leave fused_backward out; clip_by_last_norm=True with max_grad_norm of the class clips by the norm of the "
            "last step, percentile_clipping and max_unorm parameter by parameter"
        )
    if args.fp16:
        raise ValueError(
            f"{label}: Trainer scales the loss (fp16=True of its arguments) and unscales gradients after backward, and "
            f"{freed}, scaled as they were. Pass TrainingArguments(bf16=True), which needs no scaling, or leave "
            "fused_backward out"
        )
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"{label}: Trainer adds up gradients over {args.gradient_accumulation_steps} backward passes "
            f"(gradient_accumulation_steps of its arguments), and {freed}: there is nothing to add to. Pass "
            "TrainingArguments(gradient_accumulation_steps=1), with a larger per_device_train_batch_size, or leave "
            "fused_backward out"
        )
