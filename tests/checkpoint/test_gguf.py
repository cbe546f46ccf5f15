"""GGUF files: their tensors, ids and settings, as llama.cpp and `gguf` see them, or one error."""

import dataclasses
import json
import random
import struct
import time

import gguf
import numpy as np
import pytest
import torch
from helpers import (
    SCALED_DOWN,
    byte_level_tokenizer,
    corpus,
    furthest,
    llama_cpp,
    make_tokens,
    make_weights,
    metas_weights,
    refused,
)

from llama3_scratch import PROMPT, Config, InputError, Tokenizer, forward, load, save
from llama3_scratch.checkpoint import gguf as ours
from llama3_scratch.checkpoint import memory
from llama3_scratch.checkpoint.export import export, tokenizer_json
from llama3_scratch.checkpoint.source import Checkpoint, find, open_checkpoint
from llama3_scratch.config import RopeScaling, weight_shapes

KIND = gguf.GGMLQuantizationType
WIDE = Config(
    256, 2, 8, 2, 2048, 512, 1e-5, 500000.0, 0.5
)  # rows that K's blocks of 256 fit; F 512
# llama.cpp multiplies by activations that it rounds to 8 bits for Q and K types, as in
# test_export.py; random weights, 2 layers. Measured: at most a third of each.
BOUNDS = {"F32": 1e-5, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 2**-5, "Q4_0": 2**-5, "Q4_K": 2**-5,
          "Q5_K": 2**-5, "Q6_K": 2**-5}  # fmt: skip
NAMES = {  # the oracle: llama.cpp's names (`TENSOR_NAMES` in gguf's constants.py)
    "tok_embeddings": "TOKEN_EMBD", "norm": "OUTPUT_NORM", "output": "OUTPUT",
    "attention.wq": "ATTN_Q", "attention.wk": "ATTN_K", "attention.wv": "ATTN_V",
    "attention.wo": "ATTN_OUT", "feed_forward.w1": "FFN_GATE", "feed_forward.w2": "FFN_DOWN",
    "feed_forward.w3": "FFN_UP", "attention_norm": "ATTN_NORM", "ffn_norm": "FFN_NORM",
}  # fmt: skip


def named(name):
    parts = name.removesuffix(".weight").split(".")
    layer, inside = (parts[1], ".".join(parts[2:])) if parts[0] == "layers" else (0, parts[0])
    return gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[NAMES[inside]]].format(bid=layer) + ".weight"


def packed(tensor, kind, seed=0):
    """A tensor as numbers of the type, in bytes. `gguf` cannot make K's blocks: they are random."""
    rows, columns = tensor.shape
    if not kind.endswith("_K"):
        return gguf.quantize(tensor.float().numpy(), KIND[kind]).view(np.uint8)
    in_block, size = gguf.GGML_QUANT_SIZES[KIND[kind]]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows * columns // in_block, size), np.uint8)
    scales = {"Q4_K": (3e-4, 2.2e-3), "Q5_K": (1.5e-4, 2.3e-3), "Q6_K": (4e-5,)}[kind]
    scales = np.array(scales, np.float16).view(np.uint8)
    if kind == "Q6_K":
        blocks[:, -2:] = scales
    else:
        blocks[:, :4] = scales
    return blocks.reshape(rows, -1)


def write(path, config, weights, kind="F32", tokenizer=None, settings=(), tensors=(), **said):
    """Write a GGUF file with `gguf` itself.

    settings: values by their keys, None to leave one out. tensors: arrays, or (bytes, type).
    """
    writer = gguf.GGUFWriter(path, "llama")
    content = tokenizer_json(tokenizer or Tokenizer(load("tiny").tokenizer.ranks))
    entries = content["added_tokens"]
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    tokens += [entry["content"] for entry in entries]
    control = {entry["content"] for entry in entries}
    values = {
        "llama.block_count": config.n_layers, "llama.context_length": config.context_length,
        "llama.embedding_length": config.dim, "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads, "llama.rope.freq_base": config.rope_theta,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": content["model"]["merges"],
        "tokenizer.ggml.token_type": [3 if token in control else 1 for token in tokens],
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin_of_text|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|end_of_text|>"),
    } | dict(settings)  # fmt: skip
    for key, value in values.items():
        if value is not None:
            kinds = {float: gguf.GGUFValueType.FLOAT32, list: gguf.GGUFValueType.ARRAY,
                     int: gguf.GGUFValueType.UINT32, bool: gguf.GGUFValueType.BOOL,
                     str: gguf.GGUFValueType.STRING}  # fmt: skip
            writer.add_key_value(key, value, kinds[type(value)])
    for i, (name, tensor) in enumerate(weights.items()):
        if config.tied_output and name == "output.weight":
            continue
        if tensor.dim() == 1:
            writer.add_tensor(named(name), tensor.float().numpy())
        else:
            writer.add_tensor(named(name), packed(tensor, kind, i), raw_dtype=KIND[kind])
    for name, value in dict(tensors).items():
        array, its_kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=its_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# The tensors


@pytest.mark.parametrize("kind", BOUNDS)
def test_each_type_is_unpacked_as_gguf_and_llama_cpp_do(tmp_path, kind):
    path = write(tmp_path / "model.gguf", WIDE, make_weights(WIDE), kind)
    weights, config, tokenizer = load(path)
    assert config.sizes == WIDE.sizes and list(weights) == list(weight_shapes(WIDE))
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, tensor in weights.items():
        stored = theirs[named(name)]
        expected = gguf.dequantize(stored.data, stored.tensor_type)
        assert torch.equal(tensor.float(), torch.from_numpy(np.array(expected, np.float32)))
    ids = make_tokens(config, 37).tolist()
    likeliest, _ = llama_cpp(path)(ids)
    exact = load(path, torch.float32).weights
    assert furthest(likeliest, exact, ids, config) < BOUNDS[kind]
    swapped = {
        name: halves(tensor, config) if name.endswith(("wq.weight", "wk.weight")) else tensor
        for name, tensor in exact.items()
    }  # fmt: skip
    assert furthest(likeliest, swapped, ids, config) > BOUNDS[kind]  # the control


def halves(tensor, config):
    pairs = tensor.unflatten(0, (-1, config.head_dim // 2, 2))
    return pairs.transpose(1, 2).reshape(tensor.shape)


def test_the_type_of_all_tensors_loses_nothing(tmp_path):
    whole = make_weights(WIDE)
    half = {name: tensor.half().float() for name, tensor in whole.items()}
    for kind, weights, dtype in (
        ("F32", whole, torch.float32), ("F16", half, torch.float16),
        ("F16", whole, torch.float32), ("BF16", whole, torch.float32),
        ("Q8_0", half, torch.float32),
    ):  # fmt: skip
        loaded = load(write(tmp_path / "a.gguf", WIDE, weights, kind)).weights
        assert {tensor.dtype for tensor in loaded.values()} == {dtype}
        for name in ("norm.weight", "layers.1.ffn_norm.weight"):
            assert torch.equal(loaded[name].float(), weights[name])


def test_tensors_are_mapped_and_unpacked_when_they_are_used(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", WIDE, make_weights(WIDE))
    weights = load(path).weights
    assert weights["output.weight"].data_ptr() == weights["output.weight"].data_ptr()
    before = path.read_bytes()
    weights["output.weight"].zero_()  # in memory only
    assert path.read_bytes() == before
    path = write(tmp_path / "blocks.gguf", WIDE, make_weights(WIDE), "Q8_0")
    calls = []
    monkeypatch.setattr(
        ours,
        "dequantize",
        lambda data, kind: calls.append(len(data)) or gguf.dequantize(data, kind),
    )
    weights, config, _ = load(path)
    assert not calls
    forward(weights, make_tokens(config, 3), config)
    rows = sum(shape[0] for shape in weight_shapes(config).values() if len(shape) > 1)
    assert sum(calls) == rows


def test_the_memory_plan_counts_the_file_and_what_is_unpacked(tmp_path):
    weights = metas_weights(WIDE)
    plans = {}
    for kind in ("F32", "Q8_0"):
        stored = open_checkpoint(write(tmp_path / f"{kind}.gguf", WIDE, weights, kind))
        for dtype in (torch.float32, torch.bfloat16):
            plans[kind, dtype] = memory.plan(WIDE, dtype, weights=stored.weights)
    table, norms = 2048 * 256, 5 * 256
    matrices = WIDE.n_parameters - norms
    assert plans["F32", torch.float32].copies == 0
    assert plans["F32", torch.float32].weights == 4 * WIDE.n_parameters
    for dtype in (torch.float32, torch.bfloat16):
        assert plans["Q8_0", dtype].weights == matrices // 32 * 34 + 4 * norms
    layer = matrices // 2 - table
    largest = max(layer + 2 * 256, table)
    assert plans["Q8_0", torch.float32].copies == 4 * largest
    assert plans["Q8_0", torch.bfloat16].copies == 2 * largest + 4 * table


# The settings


@pytest.mark.parametrize("name", SCALED_DOWN)
def test_settings_are_read(tmp_path, name):
    config = dataclasses.replace(SCALED_DOWN[name], vocab_size=2048)
    tensors = {}
    if config.rope_scaling:
        s, H = config.rope_scaling, config.head_dim  # as in convert_hf_to_gguf.py
        factors = []
        for frequency in 1 / config.rope_theta ** (np.arange(0, H, 2) / H):
            length = 2 * np.pi / frequency
            if length < s.original_length / s.high_freq_factor:
                factors.append(1)
            elif length > s.original_length / s.low_freq_factor:
                factors.append(s.factor)
            else:
                smooth = (s.original_length / length - s.low_freq_factor) / (
                    s.high_freq_factor - s.low_freq_factor
                )
                factors.append(1 / ((1 - smooth) / s.factor + smooth))
        tensors["rope_freqs.weight"] = np.array(factors, np.float32)
    write(tmp_path / "a.gguf", config, metas_weights(config), tensors=tensors)
    found = load(tmp_path / "a.gguf").config
    for key in ("sizes", "norm_eps", "rope_theta", "rope_scaling", "tied_output", "context_length"):
        assert getattr(found, key) == getattr(config, key)
    if tensors:
        tensors["rope_freqs.weight"][-1] *= 1.01
        write(tmp_path / "a.gguf", config, metas_weights(config), tensors=tensors)
        with pytest.raises(InputError, match="not as Llama 3.1 and 3.2 scale RoPE"):
            load(tmp_path / "a.gguf")


def test_factors_that_are_all_one_scale_nothing(tmp_path):
    ones = {"rope_freqs.weight": np.ones(WIDE.head_dim // 2, np.float32)}
    settings = {"llama.context_length": 2048, "llama.rope.freq_base": None}
    write(tmp_path / "a.gguf", WIDE, make_weights(WIDE), tensors=ones, settings=settings)
    config = load(tmp_path / "a.gguf").config
    assert config.rope_scaling is None and config.rope_theta == 10000
    assert config.context_length == config.trained_length == 2048


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2': expected 'llama'"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8: expected 0"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn': expected 'none'"),
        ({"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor is 4.0: expected 1.0"),
        ({"llama.rope.dimension_count": 16}, "llama.rope.dimension_count is 16: expected 32"),
        ({"llama.attention.key_length": 64}, "llama.attention.key_length is 64: expected 32"),
        ({"llama.block_count": None}, "missing key 'llama.block_count'"),
        ({"llama.embedding_length": 1.5}, "llama.embedding_length is 1.5: expected a positive"),
        ({"llama.feed_forward_length": [512, 500]}, "feed_forward_length is array(["),
        ({"llama.attention.head_count": 2**31}, "llama.attention.head_count is 2147483648"),
        ({"llama.attention.head_count": 7}, "n_heads is 7: expected a multiple of n_kv_heads"),
        ({"llama.attention.head_count_kv": [2, 1]}, "n_kv_heads is array(["),
        ({"llama.block_count": 3}, "layers.2.attention.wq.weight is missing"),
        ({"llama.block_count": 10**6}, "expected those of the 1000000 layers"),
        ({"llama.vocab_size": 2049}, "is not a list of 2049 different tokens"),
        ({"llama.context_length": 0}, "trained_length is 0: expected a positive whole number"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5': expected 'gpt2'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre is 'qwen2': expected one of llama-"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is None: expected one of llama-bpe"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, "is not a list of 2048 different tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 2048}, "is not a list of 2048 different tokens"),
        ({"tokenizer.ggml.token_type": [1, 3]}, "expected the lists tokenizer.ggml.token_type"),
        (
            {"tokenizer.ggml.merges": None},
            "expected the lists tokenizer.ggml.token_type and merges",
        ),
        ({"tokenizer.ggml.merges": ["q"]}, "is not a working tokenizer"),
        ({"tokenizer.ggml.bos_token_id": 2048}, "bos_token_id is 2048: expected a token"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "eos_token_id is 'x': expected a whole number"),
        ({"general.architecture": "\x1b[31mred"}, r"is '\x1b[31mred': expected"),
    ],
)
def test_settings_of_other_models_are_refused_by_name(tmp_path, capsys, settings, says):
    path = write(tmp_path / "a.gguf", WIDE, make_weights(WIDE), "BF16", settings=settings)
    assert "\x1b" not in refused(path, says, capsys)


@pytest.mark.parametrize(
    "tensors, says",
    [
        ({"blk.0.attn_q.bias": np.zeros(256, np.float32)}, "'blk.0.attn_q.bias' in a.gguf is not"),
        ({"\x1b[31m": np.zeros(256, np.float32)}, r"'\x1b[31m' in a.gguf is not expected"),
        ({"norm.weight": np.zeros(256, np.float32)}, "'norm.weight' in a.gguf is not expected"),
        ({"rope_freqs.weight": np.zeros(3, np.float32)}, "rope_freqs.weight is [3]: expected [16]"),
        (
            {"rope_freqs.weight": np.full(16, np.nan, np.float32)},
            "scaling.factor is nan: expected a",
        ),
        ({"x": (np.zeros((2, 84), np.uint8), KIND.Q2_K)}, "'x' is of the type Q2_K: expected one"),
        ({"x": np.zeros(3, np.int32)}, "'x' is of the type I32: expected one of F32, F16, BF16"),
    ],
)
def test_tensors_of_other_models_are_refused_by_name(tmp_path, capsys, tensors, says):
    path = write(tmp_path / "a.gguf", WIDE, make_weights(WIDE), "BF16", tensors=tensors)
    assert "\x1b" not in refused(path, says, capsys)


# The tokenizer


@pytest.mark.parametrize("release", ["3", "3.1"])
def test_llama_3s_tokenizer_is_recognised(tmp_path, release):
    tokenizer = Tokenizer(load("tiny").tokenizer.ranks, release)
    path = write(tmp_path / "a.gguf", WIDE, make_weights(WIDE), "BF16", tokenizer)
    found = load(path).tokenizer
    assert isinstance(found, Tokenizer) and found.release == release
    assert (found.ranks, found.special) == (tokenizer.ranks, tokenizer.special)
    assert found.stop_ids == tokenizer.stop_ids and found.unused == 0
    swapped = {"tokenizer.ggml.merges": tokenizer_json(tokenizer)["model"]["merges"][::-1]}
    path = write(tmp_path / "a.gguf", WIDE, make_weights(WIDE), "BF16", tokenizer, swapped)
    assert not isinstance(load(path).tokenizer, Tokenizer)  # the control: another order of merges


def test_sentence_pieces_give_the_ids_of_tokenizers(tmp_path):
    """A tokenizer as TinyLlama's tokenizer.json has it, and its pieces as GGUF lists them."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, processors, trainers

    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(steps)
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=pieces, show_progress=False)
    made.train_from_iterator([PROMPT * 3, "Mia and Ben are friends. She is cold."], trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(made.to_str())
    del content["added_tokens"][3:]  # the bytes are pieces, not special
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokens = sorted(made.get_vocab(), key=made.get_vocab().get)
    V = len(tokens)
    settings = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(max(0, i - 259)) for i in range(V)],
        "tokenizer.ggml.merges": None, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (V - 259),
        "tokenizer.ggml.eos_token_id": 2, "llama.vocab_size": V,
    }  # fmt: skip
    config = dataclasses.replace(WIDE, vocab_size=V)
    path = write(tmp_path / "a.gguf", config, make_weights(config), settings=settings)
    found = load(path).tokenizer
    assert found.stop_ids == {2}
    for text in [PROMPT, "Mia", " cold  She", "é日\n\t", *corpus(300)]:
        if "<" not in text and "\ud800" not in text:
            assert found.encode(text) == made.encode(text).ids
            ids = made.encode(text, add_special_tokens=False).ids
            assert found.decode(ids) == made.decode(ids) and "a" + text == found.decode(
                found.encode("a" + text, bos=False)
            )
    complete = llama_cpp(path)
    for text in (PROMPT, "Mia is cold."):
        theirs, _ = complete(text)
        assert furthest(theirs, load(path).weights, found.encode(text), config) < 1e-5


@pytest.mark.thorough
def test_the_real_vocabulary_opens_and_keeps_its_ids(tmp_path):
    import llama_models

    path = next(iter(llama_models.__path__)) + "/llama3/tokenizer.model"
    tokenizer = Tokenizer.from_file(path, "3.1")
    config = Config(16, 1, 4, 2, 128256, 7, 1e-5, 500000.0, 0.5, RopeScaling(8.0))
    stored = Checkpoint(make_weights(config, torch.bfloat16), config, tokenizer)
    export(stored, "gguf", tmp_path / "real.gguf", "F16")
    start = time.monotonic()
    metadata, tensors = ours._open(tmp_path / "real.gguf")
    assert time.monotonic() - start < 5  # gguf's own reader takes 16 seconds here
    assert len(metadata["tokenizer.ggml.merges"]) == 280147  # as in Meta's repositories
    found = load(tmp_path / "real.gguf").tokenizer
    assert isinstance(found, Tokenizer) and found.ranks == tokenizer.ranks
    assert found.encode(PROMPT)[:4] == [128000, 1820, 4320, 311]


# Folders


def test_a_folder_with_one_gguf_file_is_a_checkpoint(tmp_path, capsys):
    weights = metas_weights(WIDE)
    path = write(tmp_path / "model.gguf", WIDE, weights)
    assert torch.equal(load(tmp_path).weights["output.weight"], weights["output.weight"])
    (tmp_path / "config.json").write_text("{}")  # as some repositories have it beside the file
    assert find(tmp_path) == find(path) == path
    write(tmp_path / "other.gguf", WIDE, weights)
    refused(tmp_path, "has 2 GGUF files, model.gguf, other.gguf: name one of them", capsys)
    save(tmp_path / "metas", weights, WIDE, Tokenizer(load("tiny").tokenizer.ranks))
    path.rename(tmp_path / "metas" / "model.gguf")
    assert find(tmp_path / "metas") == tmp_path / "metas"


def test_a_model_in_several_files_is_read_whole(tmp_path, capsys):
    weights = metas_weights(WIDE)
    write(tmp_path / "whole.gguf", WIDE, weights)
    reader = gguf.GGUFReader(tmp_path / "whole.gguf")
    folder = tmp_path / "split"
    folder.mkdir()
    for i, tensors in enumerate((reader.tensors[:9], reader.tensors[9:])):
        name = f"m-{i + 1:05d}-of-00002.gguf"
        part = {t.name: np.array(t.data) for t in tensors}
        write(folder / name, WIDE, {}, tensors=part, settings={"split.no": i, "split.count": 2})
    for path in (folder, folder / "m-00001-of-00002.gguf", folder / "m-00002-of-00002.gguf"):
        loaded = load(path).weights
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    (folder / "m-00001-of-00002.gguf").unlink()
    refused(folder, "is one of 2 files; 1 of them are missing, m-00001-of-00002.gguf", capsys)


# Bad files


def header(n_tensors=0, n_values=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, n_tensors, n_values)


def text(value, claims=None):
    return struct.pack("<Q", len(value) if claims is None else claims) + value


def tensor(name=b"t", sizes=(32,), kind=0, offset=0, n_dims=None):
    numbers = struct.pack(f"<{len(sizes)}Q", *sizes)
    n_dims = struct.pack("<I", len(sizes) if n_dims is None else n_dims)
    return text(name) + n_dims + numbers + struct.pack("<IQ", kind, offset)


ARRAY = struct.pack("<I", 9)
BAD = {
    "an empty file": (b"", "it starts with b''"),
    "other bytes": (b"version https://git-lfs", "it starts with b'vers', expected b'GGUF'"),
    "version 1": (header(version=1), "is of GGUF's version 1: expected 2 or 3"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(16), "expected 2 or 3, little-endian"),
    "nothing after the version": (header()[:8], "is damaged or cut short at 8 bytes"),
    "many tensors": (header(2**60), "1,152,921,504,606,846,976 tensors"),
    "many settings": (header(0, 2**63), "9,223,372,036,854,775,808 settings"),
    "settings that are not there": (header(0, 9), "does not end within 24 bytes"),
    "a long key": (header(0, 1) + text(b"a", 2**64 - 1), "does not end within"),
    "a key that is no text": (header(0, 1) + text(b"\xff\xfe") + bytes(8), "'utf-8' codec"),
    "a key twice": (header(0, 2) + (text(b"\x1b") + bytes(5)) * 2, r"'\x1b' occurs twice"),
    "a type of value": (header(0, 1) + text(b"a") + struct.pack("<I", 77), "of the type 77"),
    "a long array": (header(0, 1) + text(b"a") + ARRAY + struct.pack("<IQ", 0, 2**62), "not end"),
    "an array of strings that are not there": (
        header(0, 1) + text(b"a") + ARRAY + struct.pack("<IQ", 8, 2**62), "cut short at"),
    "an array of arrays": (
        header(0, 1) + text(b"a") + ARRAY + struct.pack("<IQ", 9, 1) + bytes(12), "of the type 9"),
    "alignment 3": (
        header(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 3), "alignment is 3"),
    "a tensor beyond the end": (header(1) + tensor(), "'t' has 128 bytes at 64"),
    "a tensor's place beyond the end": (
        header(1) + tensor(offset=2**64 - 8) + bytes(160), "'t' has 128 bytes at"),
    "a crooked place": (header(1) + tensor(offset=3) + bytes(160), "'t' has 128 bytes at"),
    "a tensor of 2^126 numbers": (header(1) + tensor(sizes=(2**63, 2**63)), "'t' has"),
    "many dimensions": (header(1) + tensor(n_dims=2**31), "with 2147483648 dimensions"),
    "no dimensions": (header(1) + tensor(sizes=()) + bytes(64), "'t' has"),
    "a half block": (header(1) + tensor(sizes=(33,), kind=8) + bytes(160), "'t' has"),
    "an unknown type": (header(1) + tensor(kind=99) + bytes(160), "of the type number 99"),
    "two tensors of one name": (header(2) + tensor() * 2 + bytes(300), "the tensor 't' with"),
    "two tensors in one place": (
        header(2) + tensor() + tensor(b"u") + bytes(300), "two tensors at byte"),
    "nothing in it": (header(), "general.architecture is None"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gives_one_message_quickly(tmp_path, capsys, kind):
    content, says = BAD[kind]
    (tmp_path / "bad.gguf").write_bytes(content)
    start = time.monotonic()
    shown = refused(tmp_path / "bad.gguf", says, capsys)
    assert time.monotonic() - start < 5 and "\x1b" not in shown


@pytest.mark.thorough
def test_a_sparse_file_of_terabytes_does_not_fill_the_memory(tmp_path, capsys):
    """Its header claims strings without end, all of which are there: zeros."""
    path = tmp_path / "sparse.gguf"
    with open(path, "wb") as file:
        file.write(header(0, 1) + text(b"a") + ARRAY + struct.pack("<IQ", 8, 2**40))
        file.truncate(2**34)
    refused(path, "the header does not end within 25,000,000 bytes", capsys)


def test_spoiled_files_load_or_give_one_message(tmp_path):
    """Bytes of the header are changed, files are cut: they load and run, or are refused."""
    config = Config(32, 1, 4, 2, 2048, 32, 1e-5, 500000.0, 0.5)
    tokenizer = byte_level_tokenizer()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    config = dataclasses.replace(config, vocab_size=len(tokens))
    settings = {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
                "tokenizer.ggml.merges": [" ".join(pair) for pair in
                                          json.loads(tokenizer.to_str())["model"]["merges"]],
                "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}  # fmt: skip
    path = write(tmp_path / "a.gguf", config, make_weights(config), "Q8_0", settings=settings)
    good, chance, refused_files = path.read_bytes(), random.Random(5), 0
    load(path)
    long = good.index(b"token_embd.weight") + 2000
    ends = [good.index(word) for word in (b"tokenizer.ggml.tokens", b"token_embd.weight")]
    for _ in range(250):
        bad = bytearray(good)
        for _ in range(chance.choice((1, 1, 3))):
            low, high = chance.choice(((0, ends[0]), (ends[1], long), (0, long)))
            at = chance.randrange(low, high)
            value = chance.choice((0, 1, 255, 128, chance.randrange(256)))
            bad[at : at + chance.choice((1, 1, 8))] = bytes([value]) * chance.choice((1, 1, 8))
        if chance.random() < 0.1:
            del bad[chance.randrange(len(bad)) :]
        path.write_bytes(bad)
        start = time.monotonic()
        try:
            weights, its_config, tokenizer = load(path)
            tokenizer.decode(tokenizer.encode("the answer"))
            logits = forward(weights, torch.tensor([3, 4]), its_config)
            assert logits.shape == (2, its_config.vocab_size)
        except InputError as error:
            refused_files += 1
            assert len(str(error)) < 3000
        assert time.monotonic() - start < 5
    assert 30 < refused_files < 250
