"""Hugging Face's files give the tensors, ids and logits of `transformers`, or one clear error."""

import contextlib
import dataclasses
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest
import torch
from helpers import (
    BYTES,
    PTH,
    SAMPLE,
    SCALED_DOWN,
    V,
    byte_level_tokenizer,
    close,
    config_json,
    corpus,
    halves,
    hugging_faces_names,
    llama_3s_tokenizer,
    make_tokens,
    metas_weights,
    refused,
    transformers_model,
    with_bytes,
    write,
)
from safetensors.torch import load_file, save_file

from llama3_scratch import PRESETS, PROMPT, Config, InputError, Tokenizer, forward, load, save
from llama3_scratch.__main__ import main
from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint import huggingface
from llama3_scratch.checkpoint.huggingface import read_config
from llama3_scratch.checkpoint.tokenizers import read_tokenizer
from llama3_scratch.config import RopeScaling, weight_shapes
from llama3_scratch.errors import visible
from llama3_scratch.speed import attend_fused

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TABLE, Q = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"
EIGHT = SCALED_DOWN["Llama-3-8B"]


@pytest.fixture
def folder(tmp_path):
    """A good sharded checkpoint as transformers writes it, in bfloat16, not tied."""
    write(tmp_path / "hf", EIGHT, metas_weights(EIGHT, torch.bfloat16), "600KB")
    assert (tmp_path / "hf" / FIRST).exists()
    return tmp_path / "hf"


# The weights


@pytest.mark.parametrize("shard", ["20KB", "5GB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SCALED_DOWN)
def test_both_layouts_give_the_same_tensors(tmp_path, name, dtype, shard):
    config = SCALED_DOWN[name]
    weights = metas_weights(config, dtype)
    save(tmp_path / "metas", weights, config, BYTES)
    write(tmp_path / "hf", config, weights, shard)
    assert (tmp_path / "hf" / SINGLE).exists() == (shard == "5GB")
    ours, our_config, _ = load(tmp_path / "metas")
    theirs, their_config, _ = load(tmp_path / "hf")
    assert set(ours) == set(theirs) == set(weights)
    for key in weights:
        assert ours[key].dtype == theirs[key].dtype == dtype
        assert torch.equal(ours[key], theirs[key]) and torch.equal(ours[key], weights[key])
    assert our_config == config and their_config.sizes == config.sizes
    for key in ("norm_eps", "rope_theta", "rope_scaling", "tied_output", "context_length"):
        assert getattr(their_config, key) == getattr(config, key)
    write(tmp_path / "wrong", config, weights, shard, permute=lambda w, n_heads: w)  # the control
    wrong, _, _ = load(tmp_path / "wrong")
    same = {key for key in weights if torch.equal(wrong[key], weights[key])}
    assert {key[-9:] for key in weights.keys() - same} == {"wq.weight", "wk.weight"}


@pytest.mark.parametrize("name", SCALED_DOWN)
def test_logits_agree_with_transformers(tmp_path, name):
    from transformers import LlamaForCausalLM

    config = SCALED_DOWN[name]
    weights, tokens = metas_weights(config), make_tokens(config, 60)
    write(tmp_path / "hf", config, weights)
    write(tmp_path / "wrong", config, weights, permute=lambda w, n_heads: w)
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.inference_mode():
        theirs = reference(tokens[None]).logits[0]
    loaded, its_config, _ = load(tmp_path / "hf")
    close(forward(loaded, tokens, its_config), theirs)
    loaded, its_config, _ = load(tmp_path / "wrong")
    with pytest.raises(AssertionError, match="differs"):  # the control
        close(forward(loaded, tokens, its_config), theirs)


@pytest.mark.parametrize("name", list(SCALED_DOWN)[1:])
@pytest.mark.thorough
def test_logits_beyond_8192_positions_agree_with_transformers(tmp_path, name):
    """The scaling of RoPE shows here: chunks with a cache, compared with one pass of theirs."""
    config = dataclasses.replace(SCALED_DOWN[name], n_layers=1)
    weights, tokens, last = metas_weights(config), make_tokens(config, 8192 + 130), 400
    write(tmp_path / "hf", config, weights)
    model = transformers_model(config, halves(weights, config))
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        theirs = model(tokens[None], logits_to_keep=last).logits[0]
    loaded, its_config, _ = load(tmp_path / "hf")

    def logits(config):
        memory, parts = Cache(config, len(tokens)), []
        with torch.inference_mode():
            for part in tokens.split(700):
                parts.append(forward(loaded, part, config, memory, attend_fused))
        return torch.cat(parts)[-last:]

    close(logits(its_config), theirs)
    eight = dataclasses.replace(its_config.rope_scaling, factor=8.0)
    scaling = eight if its_config.rope_scaling.factor == 32 else None
    wrong = dataclasses.replace(its_config, rope_scaling=scaling, trained_length=131072)
    with pytest.raises(AssertionError, match="differs"):  # the control: 8 in place of 32, or none
        close(logits(wrong), theirs)


@pytest.mark.parametrize("name", SCALED_DOWN)
def test_query_and_key_rows_are_cached_on_their_second_use(tmp_path, name):
    config = SCALED_DOWN[name]
    write(tmp_path, config, metas_weights(config))
    weights, _, _ = load(tmp_path)
    dict(weights)  # a single pass caches nothing
    for key in weights:
        assert weights[key].data_ptr() == weights[key].data_ptr()
    output, table = weights["output.weight"], weights["tok_embeddings.weight"]
    assert (output.data_ptr() == table.data_ptr()) == config.tied_output


@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_a_tied_output_may_be_stored_twice_or_only_be_named_by_an_index(tmp_path, shard):
    config = SCALED_DOWN["Llama-3.2-1B"]
    write(tmp_path, config, metas_weights(config), shard)
    if shard == "5GB":
        with_state(lambda s: s | {"lm_head.weight": s[TABLE].clone()}, SINGLE)(tmp_path)
    else:
        to_file(next(tmp_path.glob("*.safetensors")).name, "lm_head.weight")(tmp_path)
    weights, _, _ = load(tmp_path)
    assert weights["output.weight"].data_ptr() == weights["tok_embeddings.weight"].data_ptr()


MEASURE = """
import sys, torch
from llama3_scratch import load

def memory():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile")]

load(sys.argv[2])  # a small one, so that all code is loaded
points = [memory()]
weights, config, _ = load(sys.argv[1])
points.append(memory())
for _ in range(3):
    weights["layers.2.attention.wq.weight"]
points.append(memory())
for name in weights:
    weights[name].view(torch.int16).amax()
points.append(memory())
print(points)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.thorough
def test_loading_reads_nothing_and_reordering_keeps_no_second_copy(tmp_path):
    """Measure the memory of loading 480 MiB (a sparse file), of one matrix, and of using all."""
    write(tmp_path / "small", EIGHT, metas_weights(EIGHT), "5GB")
    config = Config(2048, 4, 16, 4, V, 8192, 1e-5, 500000.0, 1.5, RopeScaling(8.0))
    save(tmp_path / "big", {}, config, BYTES)
    (tmp_path / "big" / "params.json").unlink(), (tmp_path / "big" / PTH).unlink()
    (tmp_path / "big" / "config.json").write_text(json.dumps(config_json(config)))
    header, end = {}, 0
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in weight_shapes(config).items()}
        shapes = halves(weights, config)
    for name, tensor in shapes.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(tmp_path / "big" / SINGLE, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "big"), str(tmp_path / "small")]
    points = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    anonymous, of_files = ([b - a for a, b in zip(p, p[1:], strict=False)]
                           for p in zip(*points, strict=True))  # fmt: skip
    turned = 4 * (2048 * 2048 + 512 * 2048) * 2 / 2**20  # MiB of all wq and wk
    assert end / 2**20 > 400
    assert anonymous[0] < 8 and of_files[0] < 8, points  # loading
    assert 7 < anonymous[1] < 20, points  # one matrix of 8 MiB, used three times
    assert anonymous[2] < turned + 20 and of_files[2] > end / 2**20 / 2, points  # the control


# The settings

# `config.json` of the released models (meta-llama's repositories), sizes and RoPE.
SIZES = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
RELEASED = {  # name: (SIZES, RoPE's factor, other keys)
    "Llama-3-8B": ((4096, 14336, 32, 32), None, {}),
    "Llama-3-70B": ((8192, 28672, 80, 64), None, {}),
    "Llama-3.1-8B": ((4096, 14336, 32, 32), 8.0, {}),
    "Llama-3.1-405B": ((16384, 53248, 126, 128), 8.0, {}),
    "Llama-3.2-1B": ((2048, 8192, 16, 32), 32.0, {"tie_word_embeddings": True, "head_dim": 64}),
    "Llama-3.2-3B": ((3072, 8192, 28, 24), 32.0, {"tie_word_embeddings": True, "head_dim": 128}),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_settings_give_the_presets(tmp_path, name):
    sizes, factor, others = RELEASED[name]
    params = dict(zip(SIZES, sizes, strict=True)) | others | {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu",
        "max_position_embeddings": 131072 if factor else 8192, "model_type": "llama",
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "vocab_size": 128256,
    }  # fmt: skip
    rope = factor and {
        "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    older = params | {"rope_scaling": rope}
    newer = {key: value for key, value in params.items() if key != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0} | (rope or {})
    for content in (older, newer):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert read_config(tmp_path) == PRESETS[name]
    (tmp_path / "config.json").write_text(json.dumps(older | {"rope_theta": 10000.0}))
    assert read_config(tmp_path) != PRESETS[name]  # the control


# The tokenizer


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Llama 3's own vocabulary as tokenizer.json: {release: folder}."""
    import llama_models

    path = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    folders = {release: tmp_path_factory.mktemp(f"converted-{release}") for release in ("3", "3.1")}
    llama_3s_tokenizer(path, "3").save(str(folders["3"] / "tokenizer.json"))
    content = json.loads((folders["3"] / "tokenizer.json").read_text(encoding="utf-8"))
    for entry, name in zip(content["added_tokens"], hugging_faces_names("3.1"), strict=True):
        entry["content"] = name
    (folders["3.1"] / "tokenizer.json").write_text(json.dumps(content))
    return folders


@pytest.mark.parametrize("release", ["3", "3.1"])
@pytest.mark.thorough
def test_converted_tokenizers_give_metas_ids(converted, release):
    import tokenizers
    from llama_models.llama3.tokenizer import Tokenizer as MetasTokenizer

    config = PRESETS["Llama-3-8B" if release == "3" else "Llama-3.1-8B"]
    ours = read_tokenizer(converted[release], config)
    assert isinstance(ours, Tokenizer) and ours.vocab_size == 128256
    metas = MetasTokenizer.get_instance()
    oracle = tokenizers.Tokenizer.from_file(str(converted[release] / "tokenizer.json"))
    oracle.encode_special_tokens = True
    texts = [PROMPT, *corpus(3000 if release == "3" else 300)]
    assert len(texts) == (3001 if release == "3" else 301)
    for text in texts:
        ids = ours.encode(text)
        assert ids == metas.encode(text, bos=True, eos=False), repr(text)
        assert ids == oracle.encode(text).ids, repr(text)
        assert ours.decode(ids) == "<|begin_of_text|>" + text
    assert ours.stop_ids == ({128001, 128009} if release == "3" else {128001, 128008, 128009})
    assert ours.encode(PROMPT)[:3] == [128000, 1820, 4320]


def small_json(tmp_path, release="3"):
    """Write a tokenizer.json with Llama 3's split pattern and 256 single bytes -> its content."""
    save(tmp_path, {}, EIGHT, BYTES)
    tmp_path.joinpath(PTH).unlink()
    llama_3s_tokenizer(tmp_path / "tokenizer.model", release).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.model").unlink()
    return json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("release", ["3", "3.1"])
def test_a_small_vocabulary_is_converted_as_well(tmp_path, release):
    small_json(tmp_path, release)
    scaling = None if release == "3" else RopeScaling(8.0)
    config = dataclasses.replace(EIGHT, rope_scaling=scaling)
    ours = read_tokenizer(tmp_path, config)
    assert ours.ranks == BYTES.ranks and ours.special["<|eot_id|>"] == 256 + 9
    assert ("<|eom_id|>" in ours.special) == (release == "3.1")
    assert read_tokenizer(tmp_path, dataclasses.replace(config, vocab_size=600)).vocab_size == 512


def rename(content, *changes):
    for old, new in changes:
        (entry,) = (e for e in content["added_tokens"] if e["content"] == old)
        entry["content"] = new


def merge_in_another_order(content):
    content["model"]["vocab"] |= {"th": 256, "he": 257}
    for entry in content["added_tokens"]:
        entry["id"] += 2
    for token in content["post_processor"]["processors"][-1]["special_tokens"].values():
        token["ids"] = [256 + 2]
    content["model"]["merges"] = ["h e", "t h"]


CHANGED_TOKENIZERS = {  # what differs from Llama 3's: how it is made
    "two special tokens swapped": lambda c: rename(
        c, ("<|end_of_text|>", "x"), ("<|begin_of_text|>", "<|end_of_text|>"),
        ("x", "<|begin_of_text|>")),
    "an id left out": lambda c: c["model"]["vocab"].pop("A"),
    "a repeated id": lambda c: c["model"]["vocab"].update(A=40),
    "an id that is text": lambda c: c["model"]["vocab"].update(A="x"),
    "a character that stands for no byte": lambda c: c["model"]["vocab"].update({"€": 40}),
    "text that is changed before the split": lambda c: c.update(normalizer={"type": "Lowercase"}),
    "merges in another order": merge_in_another_order,
    "merges that do not precede": lambda c: c["model"].update(ignore_merges=False),
    "an added token that is found in texts": lambda c: c["added_tokens"][5].update(special=False),
    "one that takes the space before it": lambda c: c["added_tokens"][5].update(
        lstrip=True, special=False),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED_TOKENIZERS)
def test_a_tokenizer_that_is_not_llama_3s_runs_as_tokenizers_runs_it(tmp_path, change):
    """Or is refused, if the library refuses it."""
    import tokenizers

    content = small_json(tmp_path)
    assert isinstance(read_tokenizer(tmp_path, EIGHT), Tokenizer)  # the control
    CHANGED_TOKENIZERS[change](content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = dataclasses.replace(EIGHT, vocab_size=520)
    try:
        oracle = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    except BaseException:
        with pytest.raises(InputError, match="tokenizer.json is not a working tokenizer"):
            read_tokenizer(tmp_path, config)
        return
    oracle.encode_special_tokens = True
    ours = read_tokenizer(tmp_path, config)
    assert not isinstance(ours, Tokenizer)
    named = content["added_tokens"][5]["content"]
    for text in (*TEXTS, "then The THE", f"a {named} b", "A", "caf\udce9"):
        sent = text.replace("\udce9", "\ufffd")
        assert ours.encode(text) == oracle.encode(sent).ids, text


def test_a_pad_token_added_to_llama_3s_tokenizer_changes_nothing_else(tmp_path):
    """With a row in the table or without one; the stop tokens of the settings count as well."""
    content = small_json(tmp_path)
    plain = read_tokenizer(tmp_path, EIGHT)
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 512, "content": "[PAD]"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [65, 256]}')
    for vocab_size in (512, 513, 640):
        ours = read_tokenizer(tmp_path, dataclasses.replace(EIGHT, vocab_size=vocab_size))
        message = [{"role": "user", "content": "Hello [PAD]"}]
        assert ours.encode_chat(message) == plain.encode_chat(message)
        assert ours.decode([512]) == "[PAD]" and ours.stop_ids == plain.stop_ids | {65, 256}
        assert ours.vocab_size == 513 and ours.unused == max(0, vocab_size - 513)
        assert ours.decode([97, *range(513, vocab_size), 98]) == "ab"
    content["added_tokens"][-1]["content"] = "<|im_end|>"  # another chat format
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="chat format"):
        read_tokenizer(tmp_path, dataclasses.replace(EIGHT, vocab_size=513)).encode_chat(message)


def test_tokenizer_json_is_read_where_transformers_reads_it(tmp_path):
    """In a folder of Hugging Face's files it comes before tokenizer.model; in Meta's after."""
    write(tmp_path, EIGHT, metas_weights(EIGHT), "5GB")
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert not isinstance(load(tmp_path).tokenizer, Tokenizer)
    save(tmp_path / "metas", metas_weights(EIGHT), EIGHT, BYTES)
    byte_level_tokenizer().save(str(tmp_path / "metas" / "tokenizer.json"))
    assert isinstance(load(tmp_path / "metas").tokenizer, Tokenizer)


@pytest.mark.parametrize("make", ["padded", "other"])
def test_what_was_loaded_can_be_saved_and_loaded_again(tmp_path, make):
    if make == "other":
        write_other(tmp_path / "a", "SmolLM2")
    else:
        config = dataclasses.replace(EIGHT, vocab_size=530)
        write(tmp_path / "a", config, metas_weights(config), "5GB")
        (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": 65}')
    weights, config, tokenizer = load(tmp_path / "a")
    save(tmp_path / "b", weights, config, tokenizer)
    again = load(tmp_path / "b")
    assert again.config.sizes == config.sizes and again.tokenizer.stop_ids == tokenizer.stop_ids
    assert again.tokenizer.encode(SAMPLE) == tokenizer.encode(SAMPLE)
    if make == "padded":  # the control: nothing tells a padded table from a file that is cut short
        (tmp_path / "b" / "generation_config.json").rename(tmp_path / "settings")
        with pytest.raises(InputError, match="but vocab_size in the settings is 530"):
            load(tmp_path / "b")
    assert all(torch.equal(again.weights[name], weights[name]) for name in weights)
    assert not list((tmp_path / "b").glob("*.part"))


def test_of_two_sets_of_weights_the_single_file_is_read(folder):
    """As transformers does: a later save_pretrained may have left an older model's shards."""
    newer = metas_weights(EIGHT, torch.bfloat16, seed=7)
    save_file(halves(newer, EIGHT), folder / SINGLE)
    assert torch.equal(load(folder).weights["norm.weight"], newer["norm.weight"])


def test_settings_have_other_names_and_entries_of_two_versions(tmp_path):
    """rope_scaling before rope_parameters, swish for silu, null for a default: as transformers."""

    def read(**changes):
        content = config_json(SCALED_DOWN["Llama-3.1-8B"]) | changes
        (tmp_path / "config.json").write_text(json.dumps(content))
        return read_config(tmp_path)

    newer = {"rope_type": "default", "rope_theta": 1e4}
    assert read(hidden_act="swish", partial_rotary_factor=None, mlp_bias=None) == read()
    assert read(rope_parameters=newer) == read()
    assert read(rope_scaling=None, rope_parameters=newer).rope_theta == 1e4


def test_a_fine_tuned_model_stops_at_its_own_special_token(tmp_path):
    """A reserved token has another name; config.json says which token stops the text."""
    content = small_json(tmp_path)
    rename(content, ("<|reserved_special_token_0|>", "<|im_start|>"), ("<|eot_id|>", "<|im_end|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = config_json(EIGHT) | {"eos_token_id": 265}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    ours = read_tokenizer(tmp_path, EIGHT)
    assert ours.stop_ids == {265} and ours.decode([265]) == "<|im_end|>" and ours.vocab_size == 512
    assert ours.encode("ab<|im_end|>") == [256, *BYTES.encode("ab<|im_end|>", bos=False)]


# Other models of the architecture


def sentence_piece_tokenizer():
    """Like TinyLlama's: a space is a letter, one is put before a text, other letters are bytes."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, processors, trainers

    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    before, after = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([before, after])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    made.train_from_iterator([SAMPLE], trainer)
    content = json.loads(made.to_str())
    old = [token for token in content["model"]["vocab"] if token not in special]
    every = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *old]
    content["model"]["vocab"] = {token: i for i, token in enumerate(every)}
    made = tokenizers.Tokenizer.from_str(json.dumps(content))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return made


OTHERS = {  # name: (tokenizer, what differs in config.json)
    "SmolLM2": (byte_level_tokenizer, {
        "hidden_size": 72, "intermediate_size": 192, "num_attention_heads": 9, "bos_token_id": 0,
        "num_key_value_heads": 3, "rope_theta": 100000, "tie_word_embeddings": True,
        "eos_token_id": 0, "num_hidden_layers": 3, "rope_interleaved": False,
        "is_llama_config": True}),
    "TinyLlama": (sentence_piece_tokenizer, {
        "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 8, "bos_token_id": 1,
        "num_key_value_heads": 1, "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "eos_token_id": 2, "num_hidden_layers": 2}),
}  # fmt: skip


def write_other(folder, name):
    """A checkpoint as transformers writes it -> (its model, its tokenizer)."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    make, changes = OTHERS[name]
    made = make()
    size = made.get_vocab_size() + 5  # unused rows
    settings = config_json(EIGHT) | changes | {"vocab_size": size}
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**settings, initializer_range=0.3)).eval()
    if name == "TinyLlama":  # bytes that form no characters give no text to compare
        model.lm_head.weight.data[3:259] = 0
    model.save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(settings))
    if name == "TinyLlama":
        (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
        old = "model.layers.1.self_attn.rotary_emb.inv_freq"  # a buffer that files of 2023 have
        with_state(lambda s: s | {old: torch.ones(4)}, SINGLE)(folder)
    return model, PreTrainedTokenizerFast(tokenizer_object=made)


TEXTS = ["Once upon a time", " the answer  to 42", "café 🦙 naïve\n\nx", "<s>a</s><|endoftext|>",
         "é", " "]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_agree_with_transformers(tmp_path, name, capsys):
    model, theirs = write_other(tmp_path, name)
    weights, config, ours = load(tmp_path)
    tokens = make_tokens(config, 50)
    with torch.inference_mode():
        close(forward(weights, tokens, config), model(tokens[None]).logits[0])
    assert config.context_length == (2048 if name == "TinyLlama" else 8192)
    assert ours.stop_ids == {model.config.eos_token_id}
    for text in TEXTS:
        ids, rest = (theirs.encode(text, add_special_tokens=added, split_special_tokens=True)
                     for added in (True, False))  # fmt: skip
        assert ours.encode(text) == ids and ours.encode(text, bos=False) == rest, text
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False), text
        before = ours.encode("so: ")
        both = ours.decode(before) + "".join(ours.stream(rest))
        assert both == ours.decode(before + rest), text
    prompt = "Once upon a time the answer"
    ids = theirs(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        all_ids = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9,
                                 do_sample=False, pad_token_id=0)[0].tolist()  # fmt: skip
    while all_ids[-1] in ours.stop_ids:
        all_ids.pop()
    before = len(ids[0]) - len(theirs.encode(prompt, add_special_tokens=False))  # <s>, or nothing
    text = theirs.decode(all_ids[before:], clean_up_tokenization_spaces=False)
    assert main(["--checkpoint", str(tmp_path), prompt, "--max-new", "9"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("\n" + visible(text) + "\n"), (shown[-200:], text)


def test_a_character_of_many_tokens_streams_whole_and_a_part_of_one_is_marked(tmp_path):
    for name in OTHERS:
        write_other(tmp_path / name, name)
        _, _, ours = load(tmp_path / name)
        ids = ours.encode("🦙", bos=False)
        parts = list(ours.stream(ids))
        assert "".join(parts).strip() == "🦙" and parts.count("") >= 3
        assert "\ufffd" in "".join(ours.stream(ids[:-1]))


LLAMA_3S = config_json(SCALED_DOWN["Llama-3.1-8B"])["rope_scaling"]
DIFFERENT = {  # what differs: (changes in config.json, what the message says); test_config has more
    "bias of attention": ({"attention_bias": True}, "attention_bias is True: expected False"),
    "bias of the feed-forward": ({"mlp_bias": True}, "mlp_bias"),
    "GELU": ({"hidden_act": "gelu"}, "hidden_act is 'gelu': expected 'silu'"),
    "linear RoPE": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE is 'linear'"),
    "YaRN, as written today": ({"rope_parameters": {"rope_type": "yarn"}}, "'yarn'"),
    "a RoPE type that is a list": ({"rope_scaling": {"rope_type": ["llama3"]}}, "type of RoPE"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    "heads of another size": ({"head_dim": 24}, "head_dim is 24: expected hidden_size / heads"),
    "head_dim as text": ({"head_dim": "24"}, "head_dim is '24'"),
    "head_dim of zero": ({"head_dim": 0}, "head_dim is 0"),
    "no key heads": ({"num_key_value_heads": 0}, "n_kv_heads is 0"),
    "Mistral": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
        "model_type is 'mistral': expected 'llama'\n  architectures is ['MistralForCausalLM']"),
    "Llama for something else": ({"architectures": ["LlamaForTokenClassification"]}, "architect"),
    "an architecture that is a number": ({"architectures": 5}, "architectures is 5"),
    "part of a head rotated": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "the same, as written today": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "scaling without a factor": ({"rope_scaling": {"rope_type": "llama3"}}, "has no 'factor'"),
    "scaling that is a list": ({"rope_scaling": [1]}, "rope_scaling is [1]: expected an object"),
    "a negative factor": ({"rope_scaling": LLAMA_3S | {"factor": -8.0}}, "factor is -8.0"),
    "a width that is not a number": ({"hidden_size": "96"}, "hidden_size is '96'"),
    "heads that do not divide": ({"num_attention_heads": 7, "num_key_value_heads": 7}, "dim is 96"),
    "eps as text": ({"rms_norm_eps": "1e-5"}, "norm_eps is '1e-5'"),
    "positions below zero": ({"max_position_embeddings": -1}, "trained_length is -1"),
    "a tie given as a word": ({"tie_word_embeddings": "yes"}, "tied_output is 'yes'"),
}  # fmt: skip


@pytest.mark.parametrize("what", DIFFERENT)
def test_unsupported_settings_are_named(tmp_path, what, capsys):
    changes, says = DIFFERENT[what]
    (tmp_path / "config.json").write_text(json.dumps(config_json(EIGHT)))
    read_config(tmp_path)  # the control
    (tmp_path / "config.json").write_text(json.dumps(config_json(EIGHT) | changes))
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert says in str(error.value) and "config.json" in str(error.value)
    assert main(["--checkpoint", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


# Bad files


def with_json(name, change):
    def spoil(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(content) or content))

    return spoil


def with_state(change, file=FIRST):
    """Return a function that writes one file of weights again after `change(tensors)`."""

    def spoil(folder):
        state = load_file(folder / file)
        save_file(change(state) or state, folder / file)

    return spoil


def with_header(change):
    """Return a function that changes the text of a file's header."""

    def new(data):
        length = int.from_bytes(data[:8], "little")
        header = change(data[8 : 8 + length])
        return len(header).to_bytes(8, "little") + header + data[8 + length :]

    return with_bytes(FIRST, new)


def to_file(file, name=Q):
    """Return a function that lets the index say that a tensor is in this file."""
    return with_json(INDEX, lambda c: c["weight_map"].update({name: file}))


def in_a_single_file(change):
    """Return a function that writes `change(tensors)` to a single file, which is read first."""
    state = halves(metas_weights(EIGHT, torch.bfloat16), EIGHT)
    return lambda folder: save_file(change(state), folder / SINGLE)


def with_length(change):
    return with_bytes(FIRST, lambda b: change(b).to_bytes(8, "little") + b[8:])


def overlapping(header):
    table = json.loads(header)
    a, b = [entry for name, entry in table.items() if name != "__metadata__"][:2]
    b["data_offsets"] = a["data_offsets"]
    return json.dumps(table).encode()


def all_to(dtype):
    return with_state(lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})


def no_weights(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def another_tokenizer(file="tokenizer.json", change=lambda content: None):
    """Return a function that changes a JSON file after tokenizer.json has been put in place."""

    def spoil(folder):
        (folder / "tokenizer.model").unlink()
        byte_level_tokenizer().save(str(folder / "tokenizer.json"))
        with_json(file, change)(folder)

    return spoil


BIAS, DAMAGED = Q.replace("weight", "bias"), f"{FIRST} is damaged or cut short"
FAULTS = {  # what is wrong: (how it is made, what the message says)
    "a shard is missing": (
        lambda f: (f / FIRST).unlink(), f"{INDEX} names 1 files that are missing, {FIRST}"),
    "the index is cut": (with_bytes(INDEX, lambda b: b[:-9]), f"{INDEX} is not JSON"),
    "the index is a list": (with_bytes(INDEX, lambda b: b"[]"), f"{INDEX} holds '[]'"),
    "the weight_map is empty": (with_json(INDEX, lambda c: {"weight_map": {}}), "no weight_map"),
    "the weight_map is a list": (with_json(INDEX, lambda c: {"weight_map": [1]}), "no weight_map"),
    "the index leads elsewhere": (to_file("../../x.safetensors"), "beside it"),
    "the index names a pickle": (to_file("x.bin"), "beside it"),
    "the index names a number": (to_file(5), "beside it"),
    "the index names a tensor that is nowhere": (
        to_file(FIRST, "model.more"), f"{INDEX} names 'model.more', but no file has it"),
    "the index is wrong about a file": (
        to_file(SECOND), f"{FIRST} has '{Q}': {INDEX} does not list it"),
    "a tensor that the index does not name": (
        with_state(lambda s: s | {"more": torch.ones(1)}), "has 'more': " + INDEX),
    "a tensor in two shards": (
        with_state(lambda s: s | {Q: torch.ones(1)}, SECOND), f"'{Q}' is in {FIRST} and in"),
    "transposed": (
        with_state(lambda s: s.update({TABLE: s[TABLE].T.contiguous()})),
        f"tok_embeddings.weight is [96, {V}], expected [{V}, 96]"),
    "garbled header": (with_header(lambda h: h[:-20] + b"}" * 20), DAMAGED),
    "a header that is a list": (with_header(lambda h: b"[1, 2]"), DAMAGED),
    "a header of nested lists": (with_header(lambda h: b"[" * 5000), DAMAGED),
    "a header longer than the file": (with_length(lambda b: 2 * len(b)), DAMAGED),
    "a header of 10^18 bytes": (
        with_length(lambda b: 10**18), "a header of 1,000,000,000,000,000,000 bytes"),
    "a header with a repeated key": (
        with_header(lambda h: b'{"__metadata__": {}, ' + h.lstrip()[1:]), "occurs 2 times"),
    "two tensors in one place": (with_header(overlapping), DAMAGED),
    "cut by a byte": (with_bytes(FIRST, lambda b: b[:-1]), DAMAGED),
    "a byte too many": (with_bytes(FIRST, lambda b: b + b"x"), DAMAGED),
    "an empty file": (with_bytes(FIRST, lambda b: b""), DAMAGED),
    "a pointer in place of the file": (
        with_bytes(FIRST, lambda b: b"version https://git-lfs.github.com/spec/v1\noid"), "pointer"),
    "a folder in place of the file": (
        lambda f: ((f / FIRST).unlink(), (f / FIRST).mkdir()), "cannot be read"),
    "eight bits": (all_to(torch.float8_e4m3fn), "is 'F8_E4M3' (tensors of such"),
    "float64": (all_to(torch.float64), "is 'F64'"),
    "mixed types": (
        with_state(lambda s: s.update({Q: s[Q].float()})),
        "layers.0.attention.wq.weight is float32, expected bfloat16"),
    "biases": (
        in_a_single_file(lambda s: s | {BIAS: torch.ones(96, dtype=torch.bfloat16)}),
        f"{BIAS} of {SINGLE} is not expected"),
    "Meta's names, and so perhaps Meta's order of rows": (
        in_a_single_file(lambda s: metas_weights(EIGHT, torch.bfloat16)),
        f"layers.0-2.attention.wq.weight of {SINGLE} is not expected"),
    "no lm_head": (
        in_a_single_file(lambda s: {n: t for n, t in s.items() if n != "lm_head.weight"}),
        "output.weight is missing"),
    "tied weights that differ": (
        with_json("config.json", lambda c: c.update(tie_word_embeddings=True)),
        "expected a tie, by tie_word_embeddings"),
    "NaN": (
        with_state(lambda s: s.update({TABLE: s[TABLE] * torch.nan})), "the logits are not finite"),
    "only a pickle": (
        lambda f: [no_weights(f), (f / "a.bin").touch()], "; a.bin is a pickle, and pickles are"),
    "no weights": (no_weights, "expected the weights in model.safetensors"),
    "config.json is cut": (with_bytes("config.json", lambda b: b[:-9]), "config.json is not JSON"),
    "config.json is empty": (
        with_bytes("config.json", lambda b: b"{}"), "missing key 'hidden_size'"),
    "config.json of a deeper model": (
        with_json("config.json", lambda c: c.update(num_hidden_layers=9)),
        "layers.3-8.attention.wq.weight is missing"),
    "config.json of another vocabulary": (
        with_json("config.json", lambda c: c.update(vocab_size=513)),
        f"tok_embeddings.weight is [{V}, 96], expected [513, 96]"),
    "tokenizer.json is cut": (
        lambda f: (f / "tokenizer.json").write_text('{"mod'), "tokenizer.json is not JSON"),
    "tokenizer.json has no model": (
        lambda f: (f / "tokenizer.json").write_text("{}"), "json is not a working tokenizer"),
    "tokenizer.json of another model": (
        another_tokenizer(change=lambda c: c["model"]["vocab"].update({"Ġx": V})),
        f"{V + 1} tokens, but vocab_size in the settings is {V}"),
    "tokenizer.json makes its reader panic": (
        another_tokenizer(change=lambda c: c["model"].update(
            continuing_subword_prefix="a prefix that is longer than a token")),
        "is not a working tokenizer"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), "tokenizer.model cannot be read"),
    "a stop token that is not a number": (
        another_tokenizer("config.json", lambda c: c.update(eos_token_id=[[1]])),
        "eos_token_id is [1]: expected a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_gives_one_clear_error(folder, fault, capsys):
    spoil, says = FAULTS[fault]
    spoil(folder)
    shown = refused(folder, says, capsys)
    assert "panic" in fault or shown.startswith("error: ")  # Rust prints its own first


def test_good_files_give_no_error(folder, capsys):
    """The control for the test above."""
    assert main(["--checkpoint", str(folder), "ab", "--max-new", "2"]) == 0
    assert "error" not in capsys.readouterr().err
    with_header(lambda h: h)(folder)
    with_state(lambda s: None)(folder)
    with_json(INDEX, lambda c: None)(folder)
    load(folder)


# Repositories: a server with as much of the Hub's API as `huggingface_hub` needs


class Hub(http.server.BaseHTTPRequestHandler):
    """Serve one folder's files as repositories; the repository's name decides the answer."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    protocol_version = "HTTP/1.1"
    folder, home, served, visits = None, None, [], []

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        name = re.search(r"owner/(\w+)", path)[1]
        wrong = {
            "gated": (401, "GatedRepo"), "gated403": (403, "GatedRepo"), "ill": (400, "Ill"),
            "none": (404, "RepoNotFound"), "private": (401, "RepoNotFound"),
        }  # fmt: skip
        if name in wrong:
            status, code = wrong[name]
            return self.answer(status, X_Error_Code=code, X_Error_Message="no")
        if "/tree/" in path:
            files = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                for f in sorted(self.folder.iterdir())
            ]
            return self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
        if path.startswith("api/models/"):
            if name == "cut":
                have = [path.name for path in Hub.home.rglob("*--cut/snapshots/*/*")]
                Hub.visits.append((len(Hub.served), have))
            content = {"id": f"owner/{name}", "sha": self.commit, "siblings": [], "tags": []}
            return self.answer(200, json.dumps(content).encode(), Content_Type="application/json")
        file = self.folder / path.split("/")[-1]
        body, start = file.read_bytes(), 0
        headers = {"ETag": f'"{file.name}"', "X_Repo_Commit": self.commit, "Accept_Ranges": "bytes"}
        if self.headers.get("Range"):
            start = int(re.search(r"bytes=(\d+)-", self.headers["Range"])[1])
        if self.command == "GET":
            Hub.served.append((name, file.name))
        status, headers["Content-Length"] = 206 if start else 200, str(len(body) - start)
        first = (name, file.name, len(Hub.visits)) == ("cut", FIRST, 1)
        if first and self.command == "GET":  # first visit: some bytes, then no connection
            self.answer(status, b"" if start else body[:1000], **headers)
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        else:
            self.answer(status, body[start:], **headers)

    do_HEAD = do_GET


VISIT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
from llama3_scratch import InputError, load
said = []
for name in sys.argv[1:]:
    began = time.perf_counter()
    try:
        weights, config, _ = load(name)
        text = "loaded %d" % sum(weights[name].numel() for name in weights)
    except InputError as error:
        text = str(error)
    said.append([name, text, time.perf_counter() - began])
print(json.dumps(said))
"""


def visit(home, address, *names):
    """Load each in a new process -> [(message, seconds)]."""
    settings = {
        "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "no_proxy": "*",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    kept = {k: v for k, v in os.environ.items() if not re.match("HF_|.*proxy", k, re.I)}
    done = subprocess.run([sys.executable, "-c", VISIT, *names], capture_output=True, text=True,
                          env=kept | settings, cwd=home, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [(text, seconds) for _, text, seconds in json.loads(done.stdout)]


@contextlib.contextmanager
def hub(folder, home):
    Hub.folder, Hub.home, Hub.served, Hub.visits = folder, home, [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.thorough
def test_repositories_are_downloaded_or_give_one_clear_error(folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"never asked for")
    loaded = f"loaded {sum(t.numel() for t in load(folder)[0].values())}"
    names = ["good", "gated", "gated403", "none", "private", "ill", "cut", "cut", "cut"]
    with hub(folder, home) as address:
        said = visit(home, address, *(f"owner/{name}" for name in names))
    good, *refusals, ill, cut, whole, again = (text for text, _ in said)
    assert max(seconds for _, seconds in said) < 60, said
    assert good == loaded and not any("bin" in file for _, file in Hub.served)
    says = ["ask for access on"] * 2 + ["no repository"] * 2
    for name, text, what in zip(names[1:5], refusals, says, strict=True):
        assert f"{what} https://huggingface.co/owner/{name}," in text and "HF_TOKEN" in text
    assert "could not be downloaded" in ill
    assert "could not be downloaded" in cut and "Run it again" in cut
    (_, before), (n_cut, between), (n_whole, after) = Hub.visits
    assert FIRST not in before + between and FIRST in after  # it is named when it is complete
    assert whole == again == loaded and n_cut < n_whole == len(Hub.served)  # fetched once
    (good, _), (unknown, seconds) = visit(home, address, "owner/good", "owner/unknown")
    assert good == loaded  # the server is gone, but the files are not
    assert "could not be downloaded" in unknown and "refused" in unknown and seconds < 60


def test_a_file_larger_than_memory_is_not_called_damaged(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)")

    path = tmp_path / "model.safetensors"
    save_file({"lm_head.weight": torch.ones(3, 2)}, path)
    assert huggingface._read_file(path)["lm_head.weight"].sum() == 6  # the control
    monkeypatch.setattr(huggingface, "safe_open", refused)
    with pytest.raises(InputError, match="more than this machine's memory and swap.*Add swap"):
        huggingface._read_file(path)
