"""Files <-> weights: `load` reads a checkpoint of any kind, `save` writes one as Meta does."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import torch

from llama3_scratch.checkpoint import huggingface, memory, meta, packed, pth
from llama3_scratch.checkpoint.files import written_whole
from llama3_scratch.checkpoint.lazy import DTYPES
from llama3_scratch.checkpoint.source import Checkpoint, open_checkpoint
from llama3_scratch.checkpoint.tokenizers import OtherTokenizer
from llama3_scratch.errors import require
from llama3_scratch.tokenizer import Tokenizer

READ = {"generation_config.json", "tokenizer_config.json", "chat_template.*", "*.gguf"}.union(
    *([kind.SETTINGS, kind.WEIGHTS, *kind.TOKENIZERS] for kind in (meta, huggingface))
)  # what the package may read in the folder of a checkpoint


def load(directory=None, dtype=None, device=None, plan=None):
    """Load a checkpoint -> Checkpoint(weights, config, tokenizer), a NamedTuple.

    directory: a folder with the files of Meta, of Hugging Face or of `save`; a GGUF file or a
    folder that holds one; a repository on Hugging Face ("owner/name", downloaded if need be);
    "tiny" (ships with the package); "tiny-int4" (the same, most of it in 4 bits); "random" (the
    sizes and the tokenizer of tiny, weights from seed 0); or what `open_checkpoint` returned. None
    stands for the environment variable LLAMA3_CHECKPOINT, or for "tiny" if that is not set.
    dtype: torch.float32, bfloat16 or float16; None leaves the tensors as they are stored.
    device: None is torch's default, the CPU unless `torch.set_default_device` was called.
    plan: what `memory.plan` returned for this checkpoint, dtype and device; None makes one.

    weights: {Meta's name: tensor}, shapes as in `weight_shapes(config)`. On the CPU they are
    memory-mapped: a tensor is read, and cast, whenever it is used, so only one layer or one of the
    two vocabulary matrices needs to be in memory (`dict(weights)` holds all). On a GPU that is too
    small for all weights, each is copied there when it is used. Matrices that were saved in few
    bits are `Int4` or `Int8`, which stay in few bits for any dtype and device. Leave mapped files
    as they are while the weights are in use: if one is cut short, the system ends the process at
    the next use of the missing part, without a message from Python (SIGBUS). (`save` never writes
    into a file that is there: it replaces it.) Unpickling is restricted to tensors
    (`weights_only=True`). Raises `InputError`.
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

    With matrices of few bits (`quantize.packed`) the weights' file is packed.safetensors. A
    tokenizer that is not Llama 3's is written as Hugging Face's tokenizer.json. Stop tokens that
    are not the tokenizer's own go to generation_config.json, and so does <|begin_of_text|> if the
    table has unused rows. The folder is saved whole or not at all (see `written_whole`). Raises
    `InputError` if it cannot be written, or if other files there would be read with the new ones.
    """
    folder, weights = Path(directory), dict(weights)
    few_bits = packed.holds(weights)
    shard = packed.WEIGHTS if few_bits else "consolidated.00.pth"
    if isinstance(weights.get("output.weight"), packed.Packed):  # not the table any more
        config = replace(config, tied_output=False)
    params = json.dumps(config.to_params(), indent=2) + "\n"
    files = {**_tokenizer_files(tokenizer), "params.json": params.encode()}
    found = {path.name for pattern in READ for path in folder.glob(pattern)}
    others = ", ".join(sorted(found - {shard, *files})[:3])
    require(
        not others,
        f"{folder} holds files of another checkpoint, which would be read with the new ones "
        f"({others}): remove them, or name another folder.",
    )
    with written_whole(folder) as new:
        if few_bits:
            packed.write(new / shard, weights, config)
        else:
            torch.save(pth.storable(weights), new / shard)
        for name, content in files.items():
            (new / name).write_bytes(content)


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
