"""Weights published by timm and torchvision: finds them in the caches of this machine, or downloads them."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imnet.errors import IOFailure, UsageError
from imnet.files import exists
from imnet.models import external

PREFIXES = ("timm:", "torchvision:")
REACHABLE_S = 3.0


def is_here(source: str) -> bool:
    """Whether the weights are in the cache of this machine; also False if the library is not installed."""
    library, _, name = source.partition(":")
    try:
        return _cached(timm_config(name)) is not None if library == "timm" else exists(_place(name))
    except (UsageError, ImportError):
        return False


def check_fetchable(source: str) -> None:
    """Raise IOFailure or UsageError, within seconds, if the weights could not be downloaded."""
    library, _, name = source.partition(":")
    if library == "timm":
        timm_config(name)
        from huggingface_hub import constants

        _check_reachable(constants.ENDPOINT, source, "")
    else:
        _check_reachable(torchvision_weights(name).url, source, "")


def timm_config(name: str) -> Any:
    """timm's configuration for weights such as ``resnet50.a1_in1k``; UsageError if timm does not have them."""
    timm = external._timm()
    known, plain = timm.list_pretrained(), name.partition(".")[0]
    config = timm.models.get_pretrained_cfg(name) if name in known or (name == plain and timm.is_model(name)) else None
    if config is None or not config.has_weights:
        raise UsageError(f"timm has no weights {name!r}", hint=external._nearest(name, known))
    return config


def from_timm(name: str) -> tuple[dict[str, Tensor], str | None]:
    """Return (tensors, licence); the weights are downloaded if they are not in the cache."""
    config = timm_config(name)
    from huggingface_hub import constants, hf_hub_download

    file, path = config.hf_hub_filename or "model.safetensors", _cached(config)
    if path is None:
        fetch = f"fetch {file} of {config.hf_hub_id} from the Hugging Face hub, and give it: --weights {file}"
        _check_reachable(constants.ENDPOINT, f"timm:{name}", fetch)
        try:
            path = hf_hub_download(config.hf_hub_id, file)
        except OSError as error:
            raise IOFailure(f"got --weights timm:{name}: {str(error).splitlines()[0]}", hint=fetch) from error
    network = external._timm().create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path})
    return network.state_dict(), config.license


def torchvision_weights(name: str) -> Any:
    """torchvision's enum member for e.g. ``ResNet50_Weights.IMAGENET1K_V2``; UsageError if there is none."""
    from torchvision import models

    try:
        return models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        known = [str(w) for m in models.list_models(models) for w in models.get_model_weights(m)]
        raise UsageError(f"torchvision has no weights {name!r}", hint=external._nearest(name, known)) from error


def torchvision_file(name: str) -> Path:
    """Return the path of the weights; they are downloaded if they are not in the cache."""
    found, file = torchvision_weights(name), _place(name)
    if not exists(file):
        fetch = f"fetch {found.url} and put it into {file.parent}"
        _check_reachable(found.url, f"torchvision:{name}", fetch)
        try:
            found.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise IOFailure(f"got --weights torchvision:{name}: {error}", hint=fetch) from error
    return file


def _cached(config: Any) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
    return found if isinstance(found, str) else None


def _place(name: str) -> Path:
    url = urllib.parse.urlparse(torchvision_weights(name).url)
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url.path).name


def _check_reachable(url: str, source: str, fetch: str) -> None:
    """Raise IOFailure within seconds if the server is unreachable; the libraries would retry for most of a minute."""
    parts = urllib.parse.urlparse(url)
    if urllib.request.getproxies().get("https"):
        return  # the connection goes to the proxy, not to the server
    try:
        socket.create_connection((parts.hostname, parts.port or 443), REACHABLE_S).close()
    except OSError as error:
        raise IOFailure(f"got --weights {source}, not here, and {parts.hostname} is away", hint=fetch) from error
