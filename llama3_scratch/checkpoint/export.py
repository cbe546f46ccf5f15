"""Weights -> files that other programs read: Hugging Face's, llama.cpp's or Meta's.

Tensors are read, cast and written one at a time, so the memory that an export needs is that of the
largest tensor. (safetensors' own `save_file` takes all tensors at once; the header is a line of
JSON, written here.)
"""

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    quantize,
)

from llama3_scratch.checkpoint import gguf, huggingface, save
from llama3_scratch.checkpoint.files import written_whole
from llama3_scratch.checkpoint.lazy import DTYPES
from llama3_scratch.checkpoint.packed import unpacked
from llama3_scratch.checkpoint.tokenizers import (
    NAMED,
    OtherTokenizer,
    byte_alphabet,
    byte_level_json,
)
from llama3_scratch.config import weight_shapes
from llama3_scratch.errors import require, short
from llama3_scratch.tokenizer import N_SPECIAL

FORMS = "huggingface", "gguf", "meta"
PACKED = "Q8_0"  # numbers in blocks of 32 with a scale, in GGUF only
FILE_TYPES = {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16,
              "BF16": LlamaFileType.MOSTLY_BF16, PACKED: LlamaFileType.MOSTLY_Q8_0}  # fmt: skip
METAS_CHAT = (  # `Tokenizer.encode_chat` as a template of Hugging Face's
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>{{ '\\n\\n' + message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}"
    "{% endif %}"
)


def export(stored, to, out, type=None, template=None):
    """Write a checkpoint as another program reads it; all files are complete, or none is there.

    stored: what `open_checkpoint` or `load` returned. to: "huggingface" or "meta" (a folder, which
    is new or empty) or "gguf" (a file NAME.gguf, which does not exist). type: F32, F16, BF16 or
    float32, float16, bfloat16; for GGUF also Q8_0, in which the norms stay float32; None leaves
    the stored type. template: the model's own chat template; None stands for Meta's chat format if
    the tokenizer is Llama 3's. Matrices of few bits are unpacked, and rounded to the type. Raises
    `InputError`.
    """
    require(to in FORMS, f"to is {short(to)}: expected one of {', '.join(FORMS)}.")
    stored, types = stored._replace(weights=unpacked(stored.weights)), gguf.PLAIN | DTYPES
    packed = to == "gguf" and type == PACKED
    dtype = stored.weights["norm.weight"].dtype if type is None else types.get(str(type))
    known = ", ".join([*types, *[PACKED] * (to == "gguf")])
    require(packed or dtype, f"the type is {short(type)}: expected one of {known}.")
    out = Path(os.path.expanduser(out))
    new = not os.path.lexists(out)
    if to == "gguf":
        require(out.suffix == ".gguf", f"{out}: expected a name that ends with .gguf.")
        require(new, f"{out} exists: name a new file.")
    else:
        empty = new or out.is_dir() and not any(out.iterdir())
        require(empty, f"{out} exists: name a new folder, or an empty one.")
    try:
        if to == "meta":
            save(out, _all_cast(stored, dtype), stored.config, stored.tokenizer)
        elif to == "huggingface":
            with written_whole(out) as folder:
                _write_huggingface(folder, stored, dtype, template)
        else:
            with written_whole(out.parent) as folder:
                _write_gguf(folder / out.name, stored, PACKED if packed else dtype, template)
    except BaseException:
        if new and to != "gguf":
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _cast(weights, name, dtype):
    """Return one tensor in the type to be written; raise `InputError` if a number is too large."""
    tensor = weights[name]
    cast = tensor.to("cpu", dtype)
    lost = tensor.dtype != dtype and not cast.isfinite().all() and tensor.isfinite().all()
    require(
        not lost,
        f"{name} has numbers up to {float(tensor.abs().max()):g}, too large for {dtype}: choose "
        "float32 or bfloat16.",
    )
    return cast.contiguous()


def _all_cast(stored, dtype):
    """Return {Meta's name: tensor} for `save`, a tied output as the table itself."""
    weights = {name: _cast(stored.weights, name, dtype) for name in _names(stored.config)}
    return weights | {
        name: weights["tok_embeddings.weight"] for name in weight_shapes(stored.config)
        if name not in weights
    }  # fmt: skip


def _names(config):
    """Return {Meta's name: shape} of the tensors to write: without a tied output."""
    shapes = weight_shapes(config)
    if config.tied_output:
        del shapes["output.weight"]
    return shapes


# Hugging Face's files


def _write_huggingface(folder, stored, dtype, template):
    config, tokenizer = stored.config, stored.tokenizer
    names = {huggingface.hugging_faces_name(name): name for name in _names(config)}

    def tensor(theirs):
        name = names[theirs]
        cast = _cast(stored.weights, name, dtype)
        reordered = name.endswith(("attention.wq.weight", "attention.wk.weight"))
        return huggingface.in_hugging_faces_order(cast, config.head_dim) if reordered else cast

    shapes = {theirs: weight_shapes(config)[name] for theirs, name in names.items()}
    _write_safetensors(folder / huggingface.SINGLE, shapes, dtype, tensor)
    content = tokenizer_json(tokenizer)
    name_of = {i: token for token, i in content["model"].get("vocab", {}).items()}
    name_of |= {entry["id"]: entry["content"] for entry in content["added_tokens"]}
    bos, stops = tokenizer.encode("", bos=True), sorted(tokenizer.stop_ids)
    ids = {key: value for key, value in (
        ("bos_token_id", bos[0] if bos else None),
        ("eos_token_id", stops if len(stops) > 1 else stops[0] if stops else None),
    ) if value is not None}  # fmt: skip
    named = {"bos_token": name_of.get(ids.get("bos_token_id"))}
    named["eos_token"] = next((name_of[stop] for stop in stops if stop in name_of), None)
    named["chat_template"] = _template(tokenizer, template)
    settings = {
        "tokenizer.json": content,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
            "model_max_length": config.context_length,
            "model_input_names": ["input_ids", "attention_mask"],
        } | {key: value for key, value in named.items() if value},
        "generation_config.json": ids,
        "config.json": config_json(config, dtype) | ids,
    }  # fmt: skip
    for name, content in settings.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))


def config_json(config, dtype):
    """Config -> the content of a `config.json`, which transformers 4 and 5 read."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": config.dim,
        "initializer_range": 0.02, "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.context_length, "mlp_bias": False,
        "num_attention_heads": config.n_heads, "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads, "pretraining_tp": 1,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
        "rope_scaling": scaling and {
            "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor, "rope_type": "llama3",
            "original_max_position_embeddings": scaling.original_length,
        },
        "tie_word_embeddings": config.tied_output, "torch_dtype": str(dtype).split(".")[1],
        "use_cache": True, "vocab_size": config.vocab_size,
    }  # fmt: skip


def _write_safetensors(path, shapes, dtype, tensor):
    """Write a .safetensors file. shapes: {name: shape}; tensor: name -> tensor of type dtype."""
    kind = next(kind for kind, its in gguf.PLAIN.items() if its == dtype)
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(tensor(name).view(torch.uint8).numpy())


def tokenizer_json(tokenizer):
    """A tokenizer -> the content of its tokenizer.json, with the same ids.

    Llama 3's has every way to merge a token from two others, in the order of the ranks, as
    transformers' TikTokenConverter makes it.
    """
    if isinstance(tokenizer, OtherTokenizer):
        return json.loads(tokenizer.to_json())
    ranks, letter = tokenizer.ranks, {byte: c for c, byte in byte_alphabet().items()}
    shown = {token: "".join(map(letter.__getitem__, token)) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        ways = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        merges += [f"{shown[a]} {shown[b]}" for _, _, a, b in ways]
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(N_SPECIAL))
    named = [NAMED[tokenizer.release].get(i) or next(reserved) for i in range(N_SPECIAL)]
    names = [*named, *list(tokenizer.special)[N_SPECIAL:]]  # Hugging Face's, fewer than Meta's
    added = [(len(ranks) + i, name, True) for i, name in enumerate(names)]
    vocab = {shown[token]: rank for token, rank in ranks.items()}
    form = gguf.PRE_TOKENIZERS["llama-bpe"]
    return byte_level_json(vocab, merges, added, form, "<|begin_of_text|>")


def _template(tokenizer, template):
    """Return the chat template to write, or None."""
    return template or (None if isinstance(tokenizer, OtherTokenizer) else METAS_CHAT)


# llama.cpp's file


def _write_gguf(path, stored, kind, template):
    """kind: a type of torch, or PACKED."""
    config = stored.config
    called = PACKED if kind == PACKED else next(k for k, t in gguf.PLAIN.items() if t == kind)
    in_block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[called]]
    for name, shape in _names(config).items():
        whole = len(shape) == 1 or shape[-1] % in_block == 0
        require(
            whole,
            f"{name} has rows of {shape[-1]} numbers: {called} packs {in_block} at a time, so that "
            "D and F have to be multiples of it. Choose F16 or BF16.",
        )
    kinds = {name: GGMLQuantizationType["F32" if len(shape) == 1 else called]
             for name, shape in _names(config).items()}  # fmt: skip
    writer = GGUFWriter(path, "llama")
    try:
        writer.add_name(path.stem)
        writer.add_file_type(FILE_TYPES[called])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        _add_settings(writer, config)
        _add_tokenizer(writer, stored.tokenizer, config.vocab_size)
        if template := _template(stored.tokenizer, template):
            writer.add_chat_template(template)
        for name, shape in _names(config).items():
            in_block, size = GGML_QUANT_SIZES[kinds[name]]
            n_bytes = math.prod(shape) // in_block * size
            form = np.dtype("f4")  # which only says that `shape` is not in bytes
            writer.add_tensor_info(gguf.ggufs_name(name), shape, form, n_bytes, kinds[name])
        if config.rope_scaling:
            factors = gguf.rope_factors(config).numpy()
            writer.add_tensor_info(gguf.FACTORS, factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, its in kinds.items():
            writer.write_tensor_data(_in_ggufs_form(stored.weights, name, its))
        if config.rope_scaling:
            writer.write_tensor_data(factors)
    finally:
        writer.close()


def _in_ggufs_form(weights, name, kind):
    """One tensor -> the array of its bytes in a GGUF file, packed about a million at a time."""
    if kind.name in gguf.PLAIN:
        return _cast(weights, name, gguf.PLAIN[kind.name]).view(torch.uint8).numpy()
    tensor = weights[name].cpu()
    rows, columns = tensor.shape
    in_block, size = GGML_QUANT_SIZES[kind]
    packed, step = np.empty((rows, columns // in_block * size), np.uint8), max(1, 2**20 // columns)
    for first in range(0, rows, step):
        part = tensor[first : first + step].float().numpy()
        packed[first : first + step] = quantize(part, kind)
    return packed


def _add_settings(writer, config):
    H = config.head_dim
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(H)
    writer.add_key_length(H)
    writer.add_value_length(H)


def _add_tokenizer(writer, tokenizer, V):
    """Write a tokenizer of byte-level BPE; raise `InputError` if llama.cpp would give other ids."""
    content = tokenizer_json(tokenizer)
    model, added = content["model"], content["added_tokens"]
    pre = next((name for name, form in gguf.PRE_TOKENIZERS.items()
                if _plain(form) == _plain(content["pre_tokenizer"])), None)  # fmt: skip
    like = byte_level_json({}, [], [], gguf.PRE_TOKENIZERS[pre])["model"] if pre else {}
    first = tokenizer.encode("", bos=True)
    differs = {
        "how it splits a text": pre is None, "normalizer": content["normalizer"],
        "its model": any((model.get(key) or None) != (like[key] or None)
                         for key in like if key not in ("vocab", "merges")),
        "added tokens with white space": any(e["lstrip"] or e["rstrip"] for e in added),
        "what it puts before a text": len(first) > 1,
    }  # fmt: skip
    differs = [what for what, is_so in differs.items() if is_so]
    require(
        not differs,
        f"the tokenizer cannot be written as GGUF ({', '.join(differs)}): expected byte-level BPE "
        f"of the kind {', '.join(gguf.PRE_TOKENIZERS)}. llama.cpp's convert_hf_to_gguf.py knows "
        "others.",
    )
    tokens, types = [f"[PAD{i}]" for i in range(V)], [TokenType.UNUSED] * V
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for entry in added:
        if entry["id"] < V:  # a token that the table has no row for cannot be used
            special = TokenType.CONTROL if entry["special"] else TokenType.USER_DEFINED
            tokens[entry["id"]], types[entry["id"]] = entry["content"], special
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(bool(first))
    if first:
        writer.add_bos_token_id(first[0])
    adders = writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id
    stops = sorted(tokenizer.stop_ids)
    require(len(stops) <= 3, f"the model has {len(stops)} stop tokens, {stops}: GGUF names three.")
    for add, stop in zip(adders, stops, strict=False):
        add(stop)


def _plain(form):
    """A way to split -> the same without `trim_offsets`, which changes no ids."""
    if not isinstance(form, dict):
        return form
    parts = {"pretokenizers": [_plain(part) for part in form.get("pretokenizers", ())]}
    return {key: value for key, value in (form | parts).items() if key != "trim_offsets"}
