"""llama.cpp's files -> weights, config and tokenizer: one GGUF file holds all three.

A file has a header (metadata, then each tensor's name, shape, type and place) and the tensors.
llama.cpp keeps Meta's row order (its converter turns Hugging Face's back, `permute` in
convert_hf_to_gguf.py), so tensors only change their names; sizes are listed from the last
dimension on. Source: docs/gguf.md in the repository ggml-org/ggml. Numbers in blocks are unpacked
by the package `gguf`. Its reader is not used: for Llama 3's vocabulary it takes many seconds and a
gigabyte, and it follows any count that a damaged file gives.
"""

import math
import mmap
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, TokenType, dequantize

from llama3_scratch.checkpoint.huggingface import feed_forward_fields
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.meta import check, check_layers, not_readable, stored_name
from llama3_scratch.checkpoint.tokenizers import BYTE_LEVEL, CUT, byte_level_json, from_content
from llama3_scratch.config import Config, RopeScaling, weight_shapes
from llama3_scratch.errors import InputError, first_line, require, require_file, short, whole
from llama3_scratch.model import rope_frequencies

SETTINGS, WEIGHTS = "its metadata", "*.gguf"
LONGEST_HEADER, MOST_ENTRIES = 25 * 10**6, 10**5  # Llama 3's vocabulary and merges take 9 MB
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TYPES = *PLAIN, "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"
NAMES = {  # Meta's name: GGUF's, outside the layers or inside one
    "tok_embeddings": "token_embd", "norm": "output_norm", "output": "output",
    "attention.wq": "attn_q", "attention.wk": "attn_k", "attention.wv": "attn_v",
    "attention.wo": "attn_output", "feed_forward.w1": "ffn_gate", "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm",
}  # fmt: skip
FACTORS = "rope_freqs.weight"  # [P]: what RoPE's frequencies are divided by
SCALAR = {  # type of a value: its struct format
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h", GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?", GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip
GPT2S = BYTE_LEVEL | {"use_regex": True}  # with GPT-2's split pattern
PRE_TOKENIZERS = {  # tokenizer.ggml.pre: how a text is split, as a tokenizer.json has it
    "llama-bpe": {"type": "Sequence", "pretokenizers": [CUT, BYTE_LEVEL]},
    "smollm": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, GPT2S]},
    "gpt-2": GPT2S,
}  # fmt: skip
ALSO = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}  # other names of the same


class Stored(NamedTuple):
    """A tensor in a file: its type, its shape, and the place of its bytes in the mapping."""

    kind: GGMLQuantizationType
    shape: tuple
    mapping: mmap.mmap
    start: int
    n_bytes: int


def read_config(path):
    """A GGUF file -> Config.

    Raises `InputError`, which names every setting that our forward pass does not support.
    """
    metadata, tensors = _open(path)
    found = metadata.get("general.architecture")
    require(
        found == "llama",
        f"{path}: general.architecture is {short(found)}: expected 'llama'. Models of other "
        "architectures are not supported.",
    )
    said = {key[6:]: value for key, value in metadata.items() if key.startswith("llama.")}
    needed = ("embedding_length", "block_count", "attention.head_count", "feed_forward_length",
              "attention.layer_norm_rms_epsilon")  # fmt: skip
    faults = [f"\n  missing key 'llama.{key}'" for key in needed if key not in said]
    require(not faults, f"{path} has not the settings of a Llama:{''.join(faults)}")
    D, L, N, F, eps = map(said.get, needed)
    for key, value in zip(needed, (D, L, N, F), strict=False):
        right = type(value) is int and 0 < value < 2**31
        require(right, f"{path}: llama.{key} is {short(value)}: expected a positive whole number.")
    table = tensors.get("token_embd.weight")
    fixed = {  # what our forward pass does; another value means another architecture
        "expert_count": (0,), "attention.causal": (True,), "rope.scaling.type": ("none",),
        "rope.scaling.factor": (0.0, 1.0), "rope.scale_linear": (0.0, 1.0),
        "attention.key_length": (D // N,), "attention.value_length": (D // N,),
        "rope.dimension_count": (D // N,),
    }  # fmt: skip
    faults = [f"\n  llama.{key} is {short(said[key])}: expected {right[-1]!r}"
              for key, right in fixed.items() if said.get(key, right[0]) not in right]  # fmt: skip
    require(not faults, f"{path} is of a model that is not supported here:{''.join(faults)}")
    try:
        config = Config(
            D, L, N, said.get("attention.head_count_kv", N),
            said.get("vocab_size", table.shape[0] if table else None), **feed_forward_fields(D, F),
            norm_eps=eps, rope_theta=said.get("rope.freq_base", 10000.0),
            tied_output="output.weight" not in tensors,
        )  # fmt: skip
        if FACTORS in tensors:
            config = replace(config, rope_scaling=_scaling(tensors[FACTORS], config))
        length = said.get("context_length", config.context_length)
        if length != config.context_length:
            config = replace(config, trained_length=length)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config


def rope_factors(config):
    """Config -> [P], float32: what the scaling of RoPE divides each pair's frequency by."""
    return rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)


def _scaling(stored, config):
    """`rope_freqs.weight` -> RopeScaling, or None if it changes nothing."""
    P = config.head_dim // 2
    require(stored.shape == (P,), f"{FACTORS} is {list(stored.shape)}: expected [{P}].")
    factors = _tensor(stored).float()
    if bool((factors == 1).all()):
        return None
    for factor in (8.0, 32.0, round(float(factors.max()), 3)):  # the first two: 3.1's and 3.2's
        scaling = RopeScaling(factor)
        expected = rope_factors(replace(config, rope_scaling=scaling))
        if torch.allclose(factors, expected, rtol=1e-5, atol=0):
            return scaling
    raise InputError(
        f"{FACTORS} goes from {float(factors.min()):g} to {float(factors.max()):g}, but not as "
        f"Llama 3.1 and 3.2 scale RoPE ({scaling}). Other scalings are not supported."
    )


def read_weights(path, config):
    """A GGUF file -> LazyWeights, checked against the config.

    All have one type: float16 or bfloat16 if every matrix is stored so and the norms, which
    llama.cpp keeps in float32, lose nothing by it; otherwise float32. The file is memory-mapped;
    numbers in blocks are unpacked whenever a tensor is used. Raises `InputError`.
    """
    _, tensors = _open(path)
    check_layers(path, SETTINGS, len(tensors), config)
    names = {ggufs_name(name): name for name in weight_shapes(config)}
    found = {names.get(name, f"{short(name)} in {Path(path).name}"): tensor
             for name, tensor in tensors.items() if name != FACTORS}  # fmt: skip
    dtype = _one_type(found)
    shapes = {name: torch.empty(stored.shape, dtype=dtype, device="meta")
              for name, stored in found.items()}  # fmt: skip
    check(path, SETTINGS, shapes, config)

    def read(name):
        return _tensor(found[stored_name(name, config)]).to(dtype)

    packed = any(PLAIN.get(s.kind.name) != dtype for s in found.values() if len(s.shape) > 1)
    n_bytes = sum(stored.n_bytes for stored in found.values())
    return LazyWeights(weight_shapes(config), read, packed=n_bytes if packed else None)


def ggufs_name(name):
    """`layers.3.feed_forward.w3.weight` -> `blk.3.ffn_up.weight`."""
    layer, inside = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight|(.+)\.weight", name).group(1, 2)
    return f"blk.{layer}.{NAMES[inside]}.weight" if layer else f"{NAMES[name[:-7]]}.weight"


def _one_type(tensors):
    """{name: Stored} -> the type that all of them can have without a loss."""
    kinds = {stored.kind.name for stored in tensors.values() if len(stored.shape) > 1}
    dtype = PLAIN.get("".join(kinds), torch.float32)
    norms = (_tensor(stored) for stored in tensors.values() if len(stored.shape) == 1)
    exact = all(torch.equal(norm.to(dtype).to(norm.dtype), norm) for norm in norms)
    return dtype if exact else torch.float32


def _tensor(stored):
    """Stored -> its tensor: a view of the file, or unpacked, about a million numbers at a time."""
    kind, shape, mapping, start, n_bytes = stored
    if 0 in shape:
        return torch.empty(shape)
    if kind.name in PLAIN:
        dtype = PLAIN[kind.name]
        return torch.frombuffer(
            mapping, dtype=dtype, count=math.prod(shape), offset=start
        ).view(shape)  # fmt: skip
    rows = np.frombuffer(mapping, np.uint8, n_bytes, start).reshape(math.prod(shape[:-1]), -1)
    unpacked = torch.empty(shape)
    into, step = unpacked.view(len(rows), -1), max(1, 2**20 // shape[-1])
    for first in range(0, len(rows), step):
        with np.errstate(all="ignore"):  # a damaged scale gives inf or nan, which `verify` tells
            part = dequantize(rows[first : first + step], kind)
        into[first : first + step] = torch.from_numpy(part)
    return unpacked


def read_tokenizer(path, config):
    """A GGUF file -> its tokenizer: Llama 3's `Tokenizer`, or an `OtherTokenizer`.

    The metadata is turned into the tokenizer.json that it was made from. Raises `InputError`.
    """
    metadata, _ = _open(path)
    said = {key[15:]: metadata[key] for key in metadata if key.startswith("tokenizer.ggml.")}
    tokens, V = said.get("tokens"), config.vocab_size
    listed = isinstance(tokens, list) and len(tokens) == len(set(tokens)) == V
    require(listed, f"{path}: tokenizer.ggml.tokens is not a list of {V} different tokens.")
    tokenizer = from_content(_content(path, said, tokens), path)
    tokenizer.unused = max(0, V - tokenizer.vocab_size)
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        if key in said:
            tokenizer.stop_ids |= {whole(f"tokenizer.ggml.{key}", said[key])}
    return tokenizer


def read_template(path):
    """A GGUF file -> (its chat template or None, {"bos_token": its name, ...})."""
    metadata, _ = _open(path)
    tokens, named = metadata.get("tokenizer.ggml.tokens", ()), {}
    for name in (
        "bos",
        "eos",
        "unknown",
        "padding",
    ):  # the token is called "unk_token", "pad_token"
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(token) is int and 0 <= token < len(tokens):
            named[f"{name[:3]}_token"] = tokens[token]
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None, named


def _content(path, said, tokens):
    """The metadata `tokenizer.ggml.*` -> the content of a tokenizer.json."""
    model, pre = said.get("model"), said.get("pre")
    old = model == "llama"  # SentencePiece's, of Llama 2 and TinyLlama
    require(
        old or model == "gpt2",
        f"{path}: tokenizer.ggml.model is {short(model)}: expected 'gpt2' (byte-level BPE) or "
        "'llama' (SentencePiece's BPE). Other tokenizers are not supported: get the model's "
        "safetensors with its tokenizer.json.",
    )
    pre = ALSO.get(pre, pre) if isinstance(pre, str) else None
    require(
        old or pre in PRE_TOKENIZERS,
        f"{path}: tokenizer.ggml.pre is {short(said.get('pre'))}: expected one of "
        f"{', '.join((*PRE_TOKENIZERS, *ALSO))}. It says how a text is split; others are not "
        "supported.",
    )
    key = "scores" if old else "merges"
    further, types = said.get(key, ()), said.get("token_type", ())
    right = len(types) == len(tokens) and (not old or len(further) == len(tokens))
    require(
        right
        and isinstance(types, np.ndarray)
        and isinstance(further, np.ndarray if old else list),
        f"{path}: expected the lists tokenizer.ggml.token_type and {key}, one entry per token.",
    )
    kinds = dict(zip(tokens, types.tolist(), strict=True))
    special = (TokenType.CONTROL, TokenType.UNKNOWN) if old else (TokenType.CONTROL,)
    added = *special, TokenType.USER_DEFINED
    entries = [(i, token, kinds[token] in special)
               for i, token in enumerate(tokens) if kinds[token] in added]  # fmt: skip
    normal = {t: i for i, t in enumerate(tokens) if kinds[t] not in (*added, TokenType.UNUSED)}
    vocab, ids = normal, [*normal.values(), *(i for i, _, _ in entries)]
    if ids != list(range(len(ids))):  # `tokenizers` would number the added tokens anew
        vocab = normal | {token: i for i, token, _ in entries}
    bos = said.get("bos_token_id") if said.get("add_bos_token", old or pre == "llama-bpe") else None
    right = bos is None or type(bos) is int and 0 <= bos < len(tokens)
    require(right, f"{path}: tokenizer.ggml.bos_token_id is {short(bos)}: expected a token.")
    before = None if bos is None else tokens[bos]
    if not old:
        return byte_level_json(vocab, further, entries, PRE_TOKENIZERS[pre], before)
    merges = merges_of(normal, dict(zip(tokens, further.tolist(), strict=True)))
    content = byte_level_json(vocab, merges, entries, {}, before)
    return content | _sentence_pieces(content["model"], said.get("add_space_prefix", True))


def merges_of(vocab, scores):
    """{token: id}, {token: score} -> every merge, the best first, as SentencePiece makes them.

    As in `generate_merges` in transformers' convert_slow_tokenizer.py.
    """
    ways = ((t, t[:i], t[i:]) for t in vocab for i in range(1, len(t)))
    found = [way for way in ways if way[1] in vocab and way[2] in vocab]
    found.sort(key=lambda way: tuple(map(vocab.get, way)))
    found.sort(key=lambda way: (scores[way[0]], len(way[1]), len(way[2])), reverse=True)
    return [f"{left} {right}" for _, left, right in found]


def _sentence_pieces(model, prefix):
    """Return what differs from byte-level BPE in the tokenizer.json of a SentencePiece model."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    before = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    first = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *first]
    return {
        "model": model | {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        "normalizer": {"type": "Sequence", "normalizers": [*before, space]},
        "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": steps},
    }  # fmt: skip


# The files and their headers


def models_in(folder):
    """Return the GGUF files in a folder; of a model in several files only the first one."""
    found = sorted(Path(folder).glob(WEIGHTS))
    later = r".*-(?!00001)\d{5}-of-\d{5}\.gguf"
    return [path for path in found if not re.fullmatch(later, path.name, re.DOTALL)] or found[:1]


def parts_of(path):
    """One GGUF file -> the files of its model: itself, or all of `NAME-00001-of-0000N.gguf`."""
    path = Path(path)
    numbered = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name, re.DOTALL)
    if not numbered:
        return [path]
    name, _, most = numbered.groups()
    paths = [path.with_name(f"{name}-{i + 1:05d}-of-{most}.gguf") for i in range(int(most))]
    missing = [part.name for part in paths if not part.exists()]
    require(
        paths and not missing,
        f"{path} is one of {int(most)} files; {len(missing)} of them are missing, "
        f"{', '.join(missing[:3])}: download them too.",
    )
    return paths


def _open(path):
    """A GGUF file -> (metadata {key: value}, tensors {name: Stored}). Raises `InputError`."""
    metadata, tensors = {}, {}
    for part in parts_of(path):
        its_metadata, its_tensors = _read_header(part)
        twice = its_tensors.keys() & tensors.keys()
        require(not twice, f"{part}: {short(min(twice, default=''))} is in another file, too.")
        metadata = metadata or its_metadata
        tensors |= its_tensors
    return metadata, tensors


def _read_header(path):
    path = Path(path)
    try:
        require_file(path)
        with open(path, "rb") as file:
            start = file.read(8)
            version = int.from_bytes(start[4:], "little")
            require(
                start[:4] == b"GGUF",
                f"{path} is not a GGUF file: it starts with {start[:4]!r}, expected b'GGUF'. Is it "
                "a Git LFS pointer, or an unfinished download?",
            )
            require(
                version in (2, 3),
                f"{path} is of GGUF's version {version}: expected 2 or 3"
                + (", little-endian." if version > 2**15 else "."),
            )
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _Header(path, mapping).content()
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            not_readable(path, reason) if "allocate" in reason
            else f"{path} cannot be read ({reason})."
        ) from None  # fmt: skip
    except (ValueError, struct.error, OverflowError) as error:
        raise InputError(not_readable(path, first_line(error))) from None


class _Header:
    """A position in a mapped file; each step is held to what is left of the file."""

    def __init__(self, path, mapping):
        self.path, self.mapping, self.at = path, mapping, 8
        self.end = min(len(mapping), LONGEST_HEADER)

    def content(self):
        """Return (metadata, tensors). Raises ValueError and others if they are not in order."""
        n_tensors, n_values = self.numbers("QQ")
        if max(n_tensors, n_values) > MOST_ENTRIES:
            raise ValueError(f"{n_tensors:,} tensors, {n_values:,} settings")
        metadata, listed = {}, {}
        for _ in range(n_values):
            key = self.string()
            if key in metadata:
                raise ValueError(f"the key {short(key)} occurs twice")
            metadata[key] = self.value(*self.numbers("I"))
        for _ in range(n_tensors):
            name, n_dims = self.string(), *self.numbers("I")
            if name in listed or n_dims > 4:
                raise ValueError(f"the tensor {short(name)} with {n_dims} dimensions")
            listed[name] = self.numbers("Q" * n_dims), *self.numbers("IQ")
        step = metadata.get("general.alignment", 32)
        if type(step) is not int or step < 8 or step & (step - 1):
            raise ValueError(f"general.alignment is {short(step)}")
        start = -(-self.at // step) * step
        tensors = {name: self.stored(name, start, *one) for name, one in listed.items()}
        places = sorted((stored.start, stored.n_bytes) for stored in tensors.values())
        for (first, n_bytes), (second, _) in zip(places, places[1:], strict=False):
            if first + n_bytes > second:
                raise ValueError(f"two tensors at byte {second}")
        return metadata, tensors

    def stored(self, name, start, sizes, kind, offset):
        """Return what the header lists about one tensor as Stored, checked."""
        known = {kind.value: kind for kind in GGMLQuantizationType}
        called = known[kind].name if kind in known else f"number {kind}"
        require(
            called in TYPES,
            f"{self.path}: the tensor {short(name)} is of the type {called}: expected one of "
            f"{', '.join(TYPES)}. Get the model in one of these.",
        )
        in_block, size = GGML_QUANT_SIZES[known[kind]]
        shape = tuple(reversed(sizes))
        n_bytes = math.prod(shape) // in_block * size
        whole_rows = shape and shape[-1] % in_block == 0 and offset % 8 == 0
        if not whole_rows or start + offset + n_bytes > len(self.mapping):
            raise ValueError(f"{short(name)} has {n_bytes:,} bytes at {start + offset:,}")
        return Stored(known[kind], shape, self.mapping, start + offset, n_bytes)

    def take(self, n_bytes):
        """Return the place of the next n_bytes, and step over them."""
        at = self.at
        if n_bytes > self.end - at:
            raise ValueError(f"the header does not end within {self.end:,} bytes")
        self.at = at + n_bytes
        return at

    def numbers(self, kinds):
        return struct.unpack_from(
            f"<{kinds}", self.mapping, self.take(struct.calcsize(f"<{kinds}"))
        )

    def string(self):
        at = self.take(*self.numbers("Q"))
        return self.mapping[at : self.at].decode()

    def strings(self, length):
        """Return a list of strings; a vocabulary has hundreds of thousands."""
        found, mapping, at, end = [], self.mapping, self.at, self.end
        size_at = struct.Struct("<Q").unpack_from
        for _ in range(length):
            start = at + 8
            at = start + size_at(mapping, at)[0]
            if at > end:
                raise ValueError(f"the header does not end within {end:,} bytes")
            found.append(mapping[start:at].decode())
        self.at = at
        return found

    def value(self, kind):
        """Return a value: a number, a string, a list of strings or an array of numbers."""
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.FLOAT32:  # 1e-5, not 9.999999747378752e-06
            return float(str(np.float32(*self.numbers("f"))))
        if kind in SCALAR:
            return self.numbers(SCALAR[kind])[0]
        if kind != GGUFValueType.ARRAY:
            raise ValueError(f"a value of the type {kind}")
        kind, length = self.numbers("IQ")
        if kind == GGUFValueType.STRING:
            return self.strings(length)
        if kind not in SCALAR:
            raise ValueError(f"an array of the type {kind}")
        form = np.dtype(f"<{SCALAR[kind]}" if kind != GGUFValueType.BOOL else "?")
        at = self.take(length * form.itemsize)
        return np.frombuffer(self.mapping[at : self.at], form)
