"""Open networks of timm, torchvision and transformers by name, with weights from this machine.

    timm:NAME                   weights that timm has downloaded before
    timm:NAME@FILE              weights of a file
    torchvision:NAME[@FILE]     the same for torchvision
    hf:FOLDER                   a folder of transformers' `save_pretrained`

Nothing is downloaded: a library that would has its network access switched off.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dreamstill.config import did_you_mean
from dreamstill.errors import ConfigError, TeacherError, first_line
from dreamstill.files.reading import check_file
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.loaded import Loaded
from dreamstill.loaders.state_dict import filled, load_weights
from dreamstill.nn.seeded import rng_kept

__all__ = ["load", "reads"]


def reads(weights: str) -> bool:
    """Return whether a name begins with a library's prefix."""
    return weights.partition(":")[0] in LIBRARIES and ":" in weights


def load(file: TeacherFile, card: dict[str, Any]) -> Loaded:
    """Open a network of a library by name.

    Raises:
        ConfigError: the library is not installed, or has no network of this name.
        TeacherError: its weights are not on this machine, or do not load.

    """
    if file.factory is not None:
        raise ConfigError(f"{file.weights} names its network: leave factory {file.factory!r} out")
    library, _, name = file.weights.partition(":")
    with _offline(), rng_kept():
        return LIBRARIES[library](name, file)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's client from the network, also where it has been imported already."""
    constants = sys.modules.get("huggingface_hub.constants")  # which read the environment then
    with (
        patch.dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1"),
        patch.object(constants, "HF_HUB_OFFLINE", True) if constants else nullcontext(),
    ):
        yield


def _imported(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision raises RuntimeError beside a torch of another build
        why = "no" if isinstance(error, ModuleNotFoundError) and error.name == name else "a broken"
        reason = "" if why == "no" else f" ({first_line(error)})"
        raise ConfigError(f"{why} {name}{reason}: pip install 'dreamstill[{extra}]'") from error


def _timm(name: str, file: TeacherFile) -> Loaded:
    timm = _imported("timm", "hub")
    name, _, weights = name.partition("@")
    known = timm.list_models()
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(f"timm has no network {name!r}{did_you_mean(name, known)}")
    module = timm.create_model(name, pretrained=False)
    settings = module.pretrained_cfg
    if weights:
        filled(module, load_weights(weights, allow_pickle=file.allow_pickle), weights, name)
    else:
        try:
            module = timm.create_model(name, pretrained=True)
        except Exception as error:  # whatever the hub's client raises without a network
            raise TeacherError(_absent("timm", name)) from error
    card = {key: settings[key] for key in ("mean", "std") if key in settings}
    return Loaded(module, {"shape": settings["input_size"], **card}, f"timm:{name}")


def _torchvision(name: str, file: TeacherFile) -> Loaded:
    models = _imported("torchvision", "hub").models
    name, _, weights = name.partition("@")
    if name not in models.list_models():
        close = did_you_mean(name, models.list_models())
        raise ConfigError(f"torchvision has no network {name!r}{close}")
    default = models.get_model_weights(name).DEFAULT
    if not weights:
        weights = str(Path(torch.hub.get_dir()) / "checkpoints" / Path(default.url).name)
        if not Path(weights).is_file():
            raise TeacherError(_absent("torchvision", name))
    builder = signature(models.get_model_builder(name))
    backbone = {"weights_backbone"} & builder.parameters.keys()  # else it is downloaded
    module = models.get_model(name, weights=None, **dict.fromkeys(backbone))
    filled(module, load_weights(weights, allow_pickle=file.allow_pickle), weights, name)
    transforms = default.transforms()
    card: dict[str, Any] = {"mean": transforms.mean, "std": transforms.std}
    if hasattr(transforms, "crop_size"):  # networks for segmentation take any size
        card["shape"] = (3, *(transforms.crop_size * 2)[:2])
    return Loaded(module, card, f"torchvision:{name}")


def _absent(library: str, name: str) -> str:
    return (
        f"the weights of {library}:{name} are not on this machine, and nothing is downloaded: "
        f"download them with {library} first, or give {library}:{name}@FILE"
    )


def _hf(folder: str, file: TeacherFile) -> Loaded:
    transformers = _imported("transformers", "hf")
    check_file(Path(folder) / "config.json", TeacherError, "folder of transformers")
    try:
        network = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True
        )
    except Exception as error:  # many kinds, of several libraries
        raise TeacherError(
            f"{folder} does not open in transformers: {first_line(error)}"
        ) from error
    card: dict[str, Any] = {}
    sizes = getattr(network.config, "image_size", None)
    if sizes is not None:
        card["shape"] = (
            getattr(network.config, "num_channels", 3),
            *([sizes] * 2 if isinstance(sizes, int) else sizes),
        )
    if (Path(folder) / "preprocessor_config.json").is_file():
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        card |= {"mean": processor.image_mean, "std": processor.image_std}
    names = network.config.id2label
    card["class_names"] = [names[index] for index in sorted(names)]
    return Loaded(OfTransformers(network), card, f"hf:{network.config.model_type}")


class OfTransformers(nn.Module):
    """A classifier of transformers that returns its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K) for inputs (N, C, H, W)."""
        logits: Tensor = self.network(pixel_values=inputs).logits
        return logits


LIBRARIES = {"timm": _timm, "torchvision": _torchvision, "hf": _hf}
"""Functions by prefix."""
