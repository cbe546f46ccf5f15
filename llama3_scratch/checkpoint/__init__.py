"""Files <-> weights: `load` reads a checkpoint of any kind, `save` writes one as Meta does."""

import base64
import json
import os
from pathlib import Path

import torch

from llama3_scratch.checkpoint import memory
from llama3_scratch.checkpoint.lazy import DTYPES
from llama3_scratch.checkpoint.source import Checkpoint, open_checkpoint
from llama3_scratch.checkpoint.tokenizers import OtherTokenizer
from llama3_scratch.errors import require
from llama3_scratch.tokenizer import Tokenizer


def load(directory=None, dtype=None, device=None, plan=None):
    """Load a checkpoint -> Checkpoint(weights, config, tokenizer), a NamedTuple.

    directory: a folder with Meta's files or Hugging Face's, a repository on Hugging Face
    ("owner/name", downloaded if need be), "tiny" (ships with the package), "random" (the sizes and
    the tokenizer of tiny, weights from seed 0), or what `open_checkpoint` returned. None stands
    for the environment variable LLAMA3_CHECKPOINT, or for "tiny" if that is not set.
    dtype: torch.float32, bfloat16 or float16; None leaves the tensors as they are stored.
    device: None is torch's default, the CPU unless `torch.set_default_device` was called.
    plan: what `memory.plan` returned for this checkpoint, dtype and device; None makes one.

    weights: {Meta's name: tensor}, shapes as in `weight_shapes(config)`. On the CPU they are
    memory-mapped: a tensor is read, and cast, whenever it is used, so only one layer or one of the
    two vocabulary matrices needs to be in memory (`dict(weights)` holds all). On a GPU that is too
    small for all weights, each is copied there when it is used. Unpickling is restricted to
    tensors (`weights_only=True`). Raises `InputError`.
    """
    device = memory.usable(device)
    types = ", ".join(DTYPES)
    require(
        dtype in (None, *DTYPES.values()), f"dtype is {dtype}: expected one of torch's {types}."
    )
    opened = isinstance(directory, Checkpoint)
    stored = directory if opened else open_checkpoint(directory)
    config, wanted = stored.config, dtype or stored.weights["norm.weight"].dtype
    plan = plan or memory.plan(config, wanted, device, weights=stored.weights)
    weights = stored.weights.to(wanted, device)
    if plan.way == "on the device":
        weights = dict(weights)
        if config.tied_output:  # one matrix on the device, not two
            weights["output.weight"] = weights["tok_embeddings.weight"]
    return stored._replace(weights=weights)


def save(directory, weights, config, tokenizer):
    """Write a checkpoint's files as Meta does: the weights, params.json and the tokenizer.

    A tokenizer that is not Llama 3's is written as Hugging Face's tokenizer.json. Stop tokens that
    are not the tokenizer's own go to generation_config.json, and so does <|begin_of_text|> if the
    table has unused rows. The files get their names when all are complete.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    params = json.dumps(config.to_params(), indent=2) + "\n"
    files = {**_tokenizer_files(tokenizer), "params.json": params.encode()}
    names = "consolidated.00.pth", *files
    try:
        torch.save(dict(weights), folder / f"{names[0]}.part")
        for name, content in files.items():
            (folder / f"{name}.part").write_bytes(content)
        for name in names:
            os.replace(folder / f"{name}.part", folder / name)
    finally:
        for name in names:
            (folder / f"{name}.part").unlink(missing_ok=True)


def _tokenizer_files(tokenizer):
    """{name of a file: its content}"""
    if isinstance(tokenizer, OtherTokenizer):
        files, own = {"tokenizer.json": tokenizer.to_json().encode()}, frozenset()
    else:
        ranks = [(base64.b64encode(token), rank) for token, rank in tokenizer.ranks.items()]
        files = {"tokenizer.model": b"".join(b"%s %d\n" % pair for pair in ranks)}
        own = Tokenizer(tokenizer.ranks, tokenizer.release).stop_ids
    if tokenizer.stop_ids != own or tokenizer.unused:
        settings = {"eos_token_id": sorted(tokenizer.stop_ids)}
        if tokenizer.special:
            settings["bos_token_id"] = tokenizer.bos_id
        files["generation_config.json"] = json.dumps(settings).encode()
    return files
