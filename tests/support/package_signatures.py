"""Positional arguments of the classes that packages other than torch and bitsandbytes have, as in those packages.

What a package takes for its own implementation (foreach, triton, fused) is left out.
"""

from __future__ import annotations

from typing import Any

STABLE_ADAMW: dict[str, Any] = {  # torch-optimi 0.3.3, whose lr has no default
    "lr": 1e-3,
    "betas": (0.9, 0.99),
    "weight_decay": 1e-2,
    "eps": 1e-6,
    "decouple_lr": False,
    "max_lr": None,
}
ADAFACTOR: dict[str, Any] = {  # transformers 5.23.0
    "lr": None,
    "eps": (1e-30, 1e-3),
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "beta1": None,
    "weight_decay": 0.0,
    "scale_parameter": True,
    "relative_step": True,
    "warmup_init": False,
}
AVERAGE: dict[str, Any] = {"r": 0.0, "weight_lr_power": 2.0}
ADAMW_FREE: dict[str, Any] = {"lr": 2.5e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
SGD_FREE: dict[str, Any] = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0}
WARMUP: dict[str, Any] = {"warmup_steps": 0}
GROKADAMW: dict[str, Any] = {  # grokadamw 0.1.2, up to its functions
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "alpha_init": 0.98,
    "lamb": 2.0,
    "gamma": 0.1,
}
ADOPT: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.9999),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "decouple": False,
}
ADAN: dict[str, Any] = {  # timm 1.0.31
    "lr": 1e-3,
    "betas": (0.98, 0.92, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "no_prox": False,
}
SOPHIA_G: dict[str, Any] = {"lr": 1e-4, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1}
MARS: dict[str, Any] = {
    "lr": 3e-3,
    "betas": (0.95, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "gamma": 0.025,
    "optimize_1d": False,
    "lr_1d_factor": 1.0,
    "betas_1d": (0.9, 0.95),
}
ADABELIEF: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-16,
    "weight_decay": 0.0,
    "amsgrad": False,
}
PRODIGY: dict[str, Any] = {  # prodigyopt 1.1.2, whose growth_rate is infinite instead of None
    "lr": 1.0,
    "betas": (0.9, 0.999),
    "beta3": None,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "decouple": True,
    "use_bias_correction": False,
    "safeguard_warmup": False,
    "d0": 1e-6,
    "d_coef": 1.0,
    "growth_rate": None,
}
MUON: dict[str, Any] = {  # torch 2.13
    "lr": 1e-3,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "ns_coefficients": (3.4445, -4.775, 2.0315),
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
}
NORMUON: dict[str, Any] = {"lr": 0.02, "weight_decay": 0, "momentum": 0.95, "beta2": 0.95}  # its reference
ADAMUON: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.95, "beta2": 0.95}
MUONCLIP: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.95}
_PROJECTED: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}
GALORE = _PROJECTED  # galore_torch 1.0, whose groups have what its projection needs
GALORE_8BIT: dict[str, Any] = {**_PROJECTED, "eps": 1e-8, "weight_decay": 1e-2}
GALORE_ADAFACTOR: dict[str, Any] = {
    "lr": None,
    "eps": (1e-30, 1e-3),
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "beta1": None,
    "weight_decay": 0.0,
    "scale_parameter": True,
    "relative_step": True,
    "warmup_init": False,
}
APOLLO = _PROJECTED  # apollo_torch 1.0.3
SOAP: dict[str, Any] = {  # nikhilvyas/SOAP
    "lr": 3e-3,
    "betas": (0.95, 0.95),
    "shampoo_beta": None,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "precondition_frequency": 10,
}
SHAMPOO: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 1.0), "eps": 1e-12, "weight_decay": 0.0}
LOMO: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0, "max_grad_norm": 0.0}
ADALOMO: dict[str, Any] = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "max_grad_norm": 0.0,
    "eps": (1e-30, 1e-3),
}
DION: dict[str, Any] = {"lr": 0.01, "mu": 0.95, "weight_decay": 0.01}
ANYPRECISION: dict[str, Any] = {  # torchdistx 0.2
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "use_kahan_summation": False,
    "momentum_dtype": "float32",
    "variance_dtype": "bfloat16",
    "compensation_buffer_dtype": "bfloat16",
}
SIGNATURES: dict[str, dict[str, Any]] = {
    "Adafactor": ADAFACTOR,
    "AnyPrecisionAdamW": ANYPRECISION,
    "AdamWScheduleFree": ADAMW_FREE | WARMUP | AVERAGE,
    "SGDScheduleFree": SGD_FREE | WARMUP | AVERAGE,
    "RAdamScheduleFree": ADAMW_FREE | AVERAGE,
    "Prodigy": PRODIGY,
    **{f"StableAdamW{suffix}": STABLE_ADAMW for suffix in ("", "8bit")},
    **{f"GrokAdamW{suffix}": GROKADAMW for suffix in ("", "8bit")},
    **{f"ADOPT{suffix}": ADOPT for suffix in ("", "8bit")},
    **{f"Adan{suffix}": ADAN for suffix in ("", "8bit")},
    **{f"SophiaG{suffix}": SOPHIA_G for suffix in ("", "8bit")},
    **{f"MARS{suffix}": MARS for suffix in ("", "8bit")},
    **{f"AdaBelief{suffix}": ADABELIEF for suffix in ("", "8bit")},
    **{f"Muon{suffix}": MUON for suffix in ("", "8bit", "4bit")},
    **{f"NorMuon{suffix}": NORMUON for suffix in ("", "8bit", "4bit")},
    **{f"AdaMuon{suffix}": ADAMUON for suffix in ("", "8bit", "4bit")},
    **{f"MuonClip{suffix}": MUONCLIP for suffix in ("", "8bit", "4bit")},
    "GaLoreAdamW": GALORE,
    "GaLoreAdamW8bit": GALORE_8BIT,
    "GaLoreAdafactor": GALORE_ADAFACTOR,
    **{f"APOLLO{suffix}": APOLLO for suffix in ("", "8bit", "Mini", "Mini8bit")},
    **{f"SOAP{suffix}": SOAP for suffix in ("", "8bit")},
    "Shampoo": SHAMPOO,
    "LOMO": LOMO,
    "AdaLOMO": ADALOMO,
    **{f"Dion{suffix}": DION for suffix in ("", "8bit")},
}
