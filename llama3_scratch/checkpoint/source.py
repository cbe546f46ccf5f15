"""Open the checkpoint that the user names: find its folder and its kind of files."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from llama3_scratch.checkpoint import gguf, huggingface, meta, packed
from llama3_scratch.checkpoint.download import download
from llama3_scratch.checkpoint.files import require_finished
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.random import random_weights
from llama3_scratch.checkpoint.tokenizers import read_tokenizer
from llama3_scratch.config import Config
from llama3_scratch.errors import InputError, require, visible
from llama3_scratch.tokenizer import Tokenizer

MISTAKEN = {  # a file in a folder that is no checkpoint: what the folder is
    "adapter_config.json": "it is an adapter (LoRA), which changes another model's weights. Merge "
    "it into that model, for example by peft's merge_and_unload, and save the result.",
    "snapshots/*": "it is a repository in huggingface_hub's cache. Name the folder inside "
    "snapshots/ that has config.json.",
    "original/params.json": "Meta's files are in its folder original/. Name that one.",
}
TINY = Path(__file__).parents[1] / "tiny" / "checkpoint"
SHIPPED = {"tiny": TINY, "random": TINY, "tiny-int4": TINY.with_name("int4")}
ROOT = Path(__file__).parents[2]  # of the repository, unless the package is installed elsewhere


class Checkpoint(NamedTuple):
    """A model: weights {Meta's name: tensor}, its Config, its Tokenizer."""

    weights: Mapping[str, torch.Tensor]
    config: Config
    tokenizer: Tokenizer


def name_of(source=None):
    """Return the checkpoint's name: source, or the environment's LLAMA3_CHECKPOINT, or "tiny"."""
    return os.environ.get("LLAMA3_CHECKPOINT") or "tiny" if source is None else str(source)


def located(name):
    """A path -> the same path in the first folder where it is: here, or see `find`."""
    path = Path(os.path.expanduser(name))
    bases = [os.environ.get("PWD", "")] + [ROOT] * (ROOT / "pyproject.toml").exists()
    there = (base / path for base in map(Path, ["", *bases]) if os.path.exists(base / path))
    return next(there, path)


def find(source=None):
    """What `load` takes -> its folder, downloaded if need be; or its file .gguf.

    A relative path is looked for in the current folder, then in the one where the shell was when it
    started this program, or the Jupyter server of this notebook (a notebook's current folder is its
    own), then in this project's folder. If it is nowhere and could be a repository, owner/name,
    Hugging Face is asked for it, which a line on standard error says. Raises `InputError`.
    """
    name = name_of(source)
    folder = SHIPPED.get(name) or located(name)
    if not os.path.exists(folder) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        notice = f"(there is no folder {name} here: asking huggingface.co for that repository)"
        print(visible(notice), file=sys.stderr, flush=True)
        folder = download(name)
    require(
        name and (os.path.isdir(folder) or _is_gguf(folder)) and os.access(folder, os.R_OK),
        f"{name[:99]!r} is not a checkpoint: expected a folder that may be read, with params.json, "
        "tokenizer.model and consolidated.00.pth, or with Hugging Face's config.json, safetensors "
        "and tokenizer.json; or one of its repositories, 'owner/name'; or a file .gguf; or 'tiny', "
        "'tiny-int4' or 'random'.",
    )
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"the name {str(folder)!r} is not UTF-8: rename the folder.") from None
    require_finished(folder)
    own = any(any(folder.glob(p)) for k in (meta, huggingface) for p in (k.WEIGHTS, k.SETTINGS))
    for pattern, what in MISTAKEN.items():
        require(own or not any(folder.glob(pattern)), f"{folder} is not a checkpoint: {what}")
    weights = any(any(folder.glob(kind.WEIGHTS)) for kind in (meta, huggingface))
    models = [] if weights or _is_gguf(folder) else gguf.models_in(folder)
    names = ", ".join(path.name for path in models[:3])
    require(len(models) < 2, f"{folder} has {len(models)} GGUF files, {names}: name one of them.")
    return models[0] if models else folder


def _is_gguf(path):
    return path.suffix == ".gguf" and os.path.isfile(path)


def kind_of(folder):
    """Return the module that reads what `find` found: for a file `gguf`, for a folder another.

    It is the one whose weights are there: `packed`, or `meta` or `huggingface`. If both or neither
    of these are, the settings decide; if they do not either, it is `meta`.
    """
    if _is_gguf(folder):
        return gguf
    if (folder / packed.WEIGHTS).exists():
        return packed

    def there(kind):
        return [any(folder.glob(pattern)) for pattern in (kind.WEIGHTS, kind.SETTINGS)]

    return max((meta, huggingface), key=there)


def weight_files(folder):
    """What `find` returned -> the files that hold its weights. Raises `InputError`."""
    kind = kind_of(folder)
    if kind in (meta, packed):
        return sorted(folder.glob(kind.WEIGHTS))
    return (gguf.parts_of if kind is gguf else huggingface.weight_files)(folder)


def tokenizer_of(folder, config):
    """What `find` returned -> its tokenizer, which fits the config. Raises `InputError`."""
    kind = kind_of(folder)
    if kind is gguf:
        return gguf.read_tokenizer(folder, config)
    return read_tokenizer(folder, config, kind.TOKENIZERS)


def opened(source=None):
    """What `load` takes -> (what `find` returns, its Checkpoint); the network is asked once."""
    place = find(source)
    return place, open_checkpoint("random" if name_of(source) == "random" else place)


def open_checkpoint(source=None):
    """What `load` takes -> Checkpoint with the weights as stored, each read when it is used."""
    folder = find(source)
    kind = kind_of(folder)
    config = kind.read_config(folder)
    tokenizer = tokenizer_of(folder, config)
    weights = kind.read_weights(folder, config)
    if name_of(source) == "random":
        drawn = random_weights(config, seed=0, dtype=torch.bfloat16)
        weights = LazyWeights(drawn, drawn.__getitem__)
    return Checkpoint(weights, config, tokenizer)
