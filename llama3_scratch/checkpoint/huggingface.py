"""Hugging Face's files -> Meta's names, row order and settings; no code in them is executed.

A folder, or a repository's snapshot, has `config.json`, the weights in `model.safetensors` or in
several files that `model.safetensors.index.json` lists, and `tokenizer.json`. They hold the same
numbers as Meta's files under other names, with one difference: the rows of wq and wk are in
another order, because Hugging Face rotates element i with i + P where Meta rotates neighbours
(`permute` in transformers' convert_llama_weights_to_hf.py). This is undone here and nowhere else.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.meta import check, check_layers, cut, not_readable, stored_name
from llama3_scratch.config import (
    PRESETS,
    Config,
    RopeScaling,
    read_json,
    weight_shapes,
    without_doubles,
)
from llama3_scratch.errors import InputError, first_line, require, require_file, short

SETTINGS, WEIGHTS = "config.json", "*.safetensors*"
TOKENIZERS = "tokenizer.json", "tokenizer.model"  # the first one that is there is read
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_HEADER = 10**7  # bytes; the 405B's 1,138 tensors take under 200,000
TYPES = ("F32", "F16", "BF16")
BAD_FILE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
            RuntimeError)  # fmt: skip
NAMES = {  # Meta's name: Hugging Face's, outside the layers or inside one
    "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head",
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
FIXED = {  # what our forward pass does, by its names; another value means another architecture
    "model_type": ("llama",), "hidden_act": ("silu", "swish"), "attention_bias": (False, None),
    "mlp_bias": (False, None), "quantization_config": (None,), "partial_rotary_factor": (1.0, None),
}  # fmt: skip


def read_config(folder):
    """A folder with `config.json` -> Config.

    Raises `InputError`, which names every setting that our forward pass does not support.
    """
    path = Path(folder) / SETTINGS
    params = read_json(path)
    rope = {"rope_theta": params.get("rope_theta", 10000.0)}
    # Transformers up to 4 writes the first, from 5 on the second; it reads the first if both exist.
    key = "rope_scaling" if params.get("rope_scaling") else "rope_parameters"
    entry = params.get(key) or {}
    require(isinstance(entry, dict), f"{path}: {key} is {short(entry)}: expected an object.")
    rope |= entry
    kind, said = rope.get("rope_type", rope.get("type", "default")), rope | params
    faults = [f"\n  {key} is {short(said[key])}: expected {right[0]!r}"
              for key, right in FIXED.items() if said.get(key, right[0]) not in right]  # fmt: skip
    found = params.get("architectures") or ["LlamaForCausalLM"]
    if not isinstance(found, list) or "LlamaForCausalLM" not in found:
        faults.append(f"\n  architectures is {short(found)}: expected ['LlamaForCausalLM']")
    if kind not in ("default", "llama3"):
        faults.append(f"\n  the type of RoPE is {short(kind)}: expected 'default' or 'llama3'")
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
              "intermediate_size", "rms_norm_eps")  # fmt: skip
    faults += [f"\n  missing key {key!r}" for key in needed if key not in params]
    require(not faults, f"{path} is of a model that is not supported here:{''.join(faults)}")
    D, N, F = (params[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size"))
    for key, value in (("hidden_size", D), ("num_attention_heads", N), ("intermediate_size", F)):
        right = isinstance(value, int) and 0 < value < 2**31
        require(right, f"{path}: {key} is {short(value)}: expected a positive whole number.")
    H, K = params.get("head_dim"), params.get("num_key_value_heads")
    fits = H is None or isinstance(H, int) and H * N == D
    require(fits, f"{path}: head_dim is {short(H)}: expected hidden_size / heads, {D} / {N}.")
    try:
        scaling = RopeScaling(
            rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        ) if kind == "llama3" else None  # fmt: skip
        config = Config(
            D, params["num_hidden_layers"], N, N if K is None else K,
            params["vocab_size"], **feed_forward_fields(D, F), norm_eps=params["rms_norm_eps"],
            rope_theta=rope["rope_theta"], rope_scaling=scaling,
            tied_output=params.get("tie_word_embeddings", False),
        )  # fmt: skip
        length = params.get("max_position_embeddings", config.context_length)
        if length != config.context_length:
            config = replace(config, trained_length=length)
    except KeyError as error:
        raise InputError(f"{path}: the scaling of RoPE has no {error}.") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config


def feed_forward_fields(D, F):
    """Return the fields of Meta's `params.json` that give F: a released model's, or F itself."""
    for preset in PRESETS.values():
        if (preset.dim, preset.ffn_dim) == (D, F):
            return {key: getattr(preset, key) for key in ("multiple_of", "ffn_dim_multiplier")}
    return {"multiple_of": F, "ffn_dim_multiplier": min(1.0, F / int(8 * D / 3))}


def read_weights(folder, config):
    """A folder with safetensors -> LazyWeights as stored, checked against the config.

    The files are memory-mapped; query and key rows are put into Meta's order when they are used.
    Raises `InputError`.
    """
    tensors = _found(folder, config)
    check(folder, SETTINGS, tensors, config)
    reordered = [n for n in tensors if n.endswith(("attention.wq.weight", "attention.wk.weight"))]

    def read_part(name, rank, ranks):
        part = cut(tensors[stored_name(name, config)], name, rank, ranks)  # of whole heads
        return in_metas_order(part, config.head_dim) if name in reordered else part

    return LazyWeights(
        weight_shapes(config), lambda name: read_part(name, 0, 1), costly=reordered,
        read_part=read_part,
    )  # fmt: skip


def in_metas_order(weight, head_dim):
    """wq or wk as Hugging Face stores it, [N*H, D] -> the same with Meta's order of rows."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # [N, 2, P, D]
    return halves.transpose(1, 2).reshape(weight.shape)  # neighbours are pairs: [N*H, D]


def in_hugging_faces_order(weight, head_dim):
    """wq or wk in Meta's order of rows, [N*H, D] -> the same as Hugging Face stores it."""
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))  # [N, P, 2, D]
    return pairs.transpose(1, 2).reshape(weight.shape)  # halves: [N*H, D]


def _found(folder, config):
    """{Meta's name: tensor as Hugging Face stores it}, memory-mapped."""
    listed = _listed(folder)
    files = {path.name: _read_file(path) for path in weight_files(folder)}
    check_layers(folder, SETTINGS, sum(map(len, files.values())), config)
    names = {hugging_faces_name(name): name for name in weight_shapes(config)}
    found, where = {}, {}
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            twice = f"{folder}: {short(name)} is in {where.get(name)} and in {file}."
            require(name not in where, twice)
            wrong = listed and listed.get(name) != file
            require(not wrong, f"{folder / file} has {short(name)}: {INDEX} does not list it.")
            where[name] = file
            if not name.endswith("rotary_emb.inv_freq"):  # old files have it; ours is computed
                # A tensor under Meta's own name may have Meta's row order: it is unexpected, too.
                found[names.get(name, f"{name} of {file}")] = tensor
    unused = {"lm_head.weight"} if config.tied_output else set()
    missing = [short(name) for name in listed if name not in where and name not in unused]
    require(not missing, f"{folder}: {INDEX} names {''.join(missing[:1])}, but no file has it.")
    return found


def hugging_faces_name(name):
    """`layers.3.feed_forward.w3.weight` -> `model.layers.3.mlp.up_proj.weight`."""
    layer, inside = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", name).groups()
    return f"model.{layer}{NAMES[inside]}.weight" if layer else f"{NAMES[inside]}.weight"


def weight_files(folder):
    """Return the files with the weights, which need not be there. Raises `InputError`."""
    return [folder / name for name in sorted(set(_listed(folder).values())) or [SINGLE]]


def _listed(folder):
    """The index as {name: file}, empty for a single file, which is read if there are both."""
    path = folder / INDEX
    if not path.exists() or (folder / SINGLE).exists():
        others = sorted(file.name for file in folder.glob("*.bin"))
        require(
            (folder / SINGLE).exists(),
            f"{folder}: expected the weights in {SINGLE}, or in several files with {INDEX}"
            + (f"; {others[0]} is a pickle, and pickles are not read." if others else "."),
        )
        return {}
    listed = read_json(path).get("weight_map")
    plain = isinstance(listed, dict) and listed and all(
        isinstance(file, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,200}\.safetensors", file)
        for file in listed.values()
    )  # fmt: skip
    require(plain, f"{path} has no weight_map from names to .safetensors files beside it.")
    missing = sorted({file for file in listed.values() if not (folder / file).exists()})
    require(
        not missing,
        f"{path} names {len(missing)} files that are missing, {', '.join(missing[:3])}: the "
        "download is not complete. Download them too.",
    )
    return listed


def _read_file(path):
    """One .safetensors -> {Hugging Face's name: tensor}, memory-mapped."""
    try:
        require_file(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LONGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(file.read(length), object_pairs_hook=without_doubles)
        kinds = {name: header[name]["dtype"] for name in header if name != "__metadata__"}
        odd = [f"{name[:99]} is {short(kind)}" for name, kind in kinds.items() if kind not in TYPES]
        require(
            not odd,
            f"{path}: {''.join(odd[:1])} (tensors of such a type: {len(odd)}); expected one of "
            f"{', '.join(TYPES)}. Quantized weights are not supported: get the model as it was "
            "released.",
        )
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in kinds}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except BAD_FILE as error:
        raise InputError(not_readable(path, first_line(error))) from None
