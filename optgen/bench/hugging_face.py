"""Shapes of any model that Transformers can make, from its configuration: the model is made without memory."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from optgen.bench.shapes import DTYPES, Shapes
from optgen.errors import UserError

CONFIG = "config.json"


def names_a_config(name: str) -> bool:
    """Check whether a name is of a configuration, and not of a model that is known here: a file, a folder, a hub's."""
    return "/" in name or name.endswith(".json") or Path(name).is_dir()


def config_shapes(name: str) -> Shapes:
    """The shapes of the parameters that a configuration's model trains, and its dtype.

    Args:
        name: A `config.json`, a folder that has one, or a model of the hub, as `Qwen/Qwen2.5-0.5B`.

    Raises:
        UserError: if Transformers is missing, or there is no such configuration, or it makes no model here.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("--like with a configuration needs Transformers: pip install transformers")
    import torch

    from optgen.bench.peers import quiet

    with quiet():
        config = _config(name)
        make, notes = _maker(config)
    try:
        with quiet(), torch.device("meta"):
            model = make(config)
    except Exception as error:  # of whatever the model's code finds wrong with the numbers
        raise UserError(f"{name}: no model can be made of it: {type(error).__name__}: {error}") from error
    shapes = tuple(tuple(param.shape) for param in model.parameters())  # tied ones once
    if not shapes:
        raise UserError(f"{name}: its model has no parameters")
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        notes.append(f"its dtype {dtype} is no parameter's here; float32 is measured")
        dtype = "float32"
    return Shapes(shapes, dtype, (f"{type(model).__name__}, of {name}", *notes))


def _config(name: str) -> Any:
    """The configuration; of the hub's, its code is never run."""
    transformers: Any = importlib.import_module("transformers")
    path = Path(name)
    local = path.exists() or name.endswith(".json")
    if local and not (path / CONFIG if path.is_dir() else path).is_file():
        raise UserError(f"{path} has no {CONFIG}" if path.is_dir() else f"{path} cannot be read: no such file")
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's client, a file that is no configuration
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{name}: Transformers finds no configuration: {type(error).__name__}: {first}") from error


def _maker(config: Any) -> tuple[Any, list[str]]:
    """A maker of the model that the configuration names, or the one without a head where Transformers has no such."""
    transformers: Any = importlib.import_module("transformers")
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found, []
    return transformers.AutoModel.from_config, ["it names no model of Transformers: measured without a head"]
