"""Open the checkpoint that the user names: find its folder and its kind of files."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from llama3_scratch.checkpoint import huggingface, meta
from llama3_scratch.checkpoint.download import download
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.random import random_weights
from llama3_scratch.checkpoint.tokenizers import read_tokenizer
from llama3_scratch.config import Config
from llama3_scratch.errors import InputError, require
from llama3_scratch.tokenizer import Tokenizer

MISTAKEN = {  # a file in a folder that is no checkpoint: what the folder is
    "adapter_config.json": "it is an adapter (LoRA), which changes another model's weights. Merge "
    "it into that model, for example by peft's merge_and_unload, and save the result.",
    "*.gguf": "it holds a GGUF file, which is not supported. Get the model's safetensors.",
    "snapshots/*": "it is a repository in huggingface_hub's cache. Name the folder inside "
    "snapshots/ that has config.json.",
    "original/params.json": "Meta's files are in its folder original/. Name that one.",
}
TINY = Path(__file__).parents[1] / "tiny" / "checkpoint"


class Checkpoint(NamedTuple):
    """A model: weights {Meta's name: tensor}, its Config, its Tokenizer."""

    weights: Mapping[str, torch.Tensor]
    config: Config
    tokenizer: Tokenizer


def name_of(source=None):
    """Return the checkpoint's name: source, or the environment's LLAMA3_CHECKPOINT, or "tiny"."""
    return os.environ.get("LLAMA3_CHECKPOINT") or "tiny" if source is None else str(source)


def find(source=None):
    """What `load` takes -> its folder, downloaded if need be. Raises `InputError`."""
    name = name_of(source)
    folder = TINY if name in ("tiny", "random") else Path(os.path.expanduser(name))
    if not os.path.exists(folder) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        folder = download(name)
    require(
        name and os.path.isdir(folder) and os.access(folder, os.R_OK),
        f"{name[:99]!r} is not a checkpoint: expected a folder that may be read, with params.json, "
        "tokenizer.model and consolidated.00.pth, or with Hugging Face's config.json, safetensors "
        "and tokenizer.json; or one of its repositories, 'owner/name'; or 'tiny' or 'random'.",
    )
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"the name {str(folder)!r} is not UTF-8: rename the folder.") from None
    own = any(any(folder.glob(p)) for k in (meta, huggingface) for p in (k.WEIGHTS, k.SETTINGS))
    for pattern, what in MISTAKEN.items():
        require(own or not any(folder.glob(pattern)), f"{folder} is not a checkpoint: {what}")
    return folder


def kind_of(folder):
    """Return the module that reads a folder: the one whose weights are there.

    If both or neither are, the settings decide; if they do not either, it is `meta`.
    """

    def there(kind):
        return [any(folder.glob(pattern)) for pattern in (kind.WEIGHTS, kind.SETTINGS)]

    return max((meta, huggingface), key=there)


def open_checkpoint(source=None):
    """What `load` takes -> Checkpoint with the weights as stored, each read when it is used."""
    folder = find(source)
    kind = kind_of(folder)
    config = kind.read_config(folder)
    tokenizer = read_tokenizer(folder, config, kind.TOKENIZERS)
    weights = kind.read_weights(folder, config)
    if name_of(source) == "random":
        drawn = random_weights(config, seed=0, dtype=torch.bfloat16)
        weights = LazyWeights(drawn, drawn.__getitem__)
    return Checkpoint(weights, config, tokenizer)
