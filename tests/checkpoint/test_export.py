"""Files that we write are read by transformers and llama.cpp, which then say the same as we do."""

import json
import os
import subprocess
import sys
import weakref

import pytest
import torch
from helpers import (
    BYTES,
    SCALED_DOWN,
    V,
    byte_level_tokenizer,
    close,
    config_json,
    corpus,
    furthest,
    halves,
    hugging_faces_names,
    llama_3s_tokenizer,
    llama_cpp,
    make_tokens,
    make_weights,
    metas_weights,
)
from safetensors.torch import load_file, save_file

from llama3_scratch import PROMPT, STORY, Config, InputError, Tokenizer, forward, load
from llama3_scratch.checkpoint import huggingface
from llama3_scratch.checkpoint.export import export, tokenizer_json
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.source import TINY, Checkpoint, open_checkpoint
from llama3_scratch.checkpoint.tokenizers import from_content
from llama3_scratch.config import RopeScaling

HUNGRY = "Mia and Ben are friends. She is cold and he is hungry. What does Ben want?"
TEXTS = PROMPT, STORY, HUNGRY, "Mia", "Read: tree door river. Again: tree", "12345"
# The largest difference of log-probabilities in units of the largest logit. llama.cpp rounds the
# activations to the weights' type before it multiplies: half a unit of the last place, 2^-11 and
# 2^-8, and Q8_0's step is 1/127 of the largest of 32 numbers; through 6 layers. Measured: 2e-6,
# 2e-4, 2e-3, 1e-2.
BOUNDS = {"F32": 1e-5, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 2**-6}


def tiny_tokenizer(release="3"):
    return Tokenizer(load("tiny").tokenizer.ranks, release)


def fitted(name):
    """A small config with the ratios of a released model, for tiny's vocabulary."""
    return SCALED_DOWN[name].__class__(**vars(SCALED_DOWN[name]) | {"vocab_size": 2048})


def checkpoint(name, dtype=torch.float32):
    """Random weights in that shape; norms that float16 can hold."""
    config = fitted(name)
    tokenizer = tiny_tokenizer("3.1" if config.rope_scaling else "3")
    weights = metas_weights(config, dtype)
    norms = {key: t.half().to(dtype) for key, t in weights.items() if t.dim() == 1}
    return Checkpoint(weights | norms, config, tokenizer)


# llama.cpp


@pytest.mark.parametrize("kind", BOUNDS)
def test_llama_cpp_says_what_tiny_says(tmp_path, kind):
    path = tmp_path / "tiny.gguf"
    export(open_checkpoint("tiny"), "gguf", path, kind)
    complete = llama_cpp(path)
    assert complete(PROMPT, 9)[1] == "42"
    assert complete(HUNGRY, 9)[1] == " He wants bread."
    weights, config, tokenizer = load(path, torch.float32)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        theirs, _ = complete(ids)
        assert theirs == complete(text)[0]  # its own tokenizer gives these ids
        assert furthest(theirs, weights, ids, config) < BOUNDS[kind]
        ours = torch.log_softmax(forward(weights, torch.tensor(ids), config)[-1], -1)
        assert theirs[0][0] == int(ours.argmax())
        if kind == "F32":
            assert [token for token, _ in theirs] == ours.topk(10).indices.tolist()


def test_the_bounds_notice_hugging_faces_row_order(tmp_path, monkeypatch):
    """The control: the same file with the rows of wq and wk as Hugging Face has them."""
    weights, config, tokenizer = load("tiny", torch.float32)
    theirs = {
        name: huggingface.in_hugging_faces_order(tensor, config.head_dim)
        if name.endswith(("wq.weight", "wk.weight")) else tensor
        for name, tensor in weights.items()
    }  # fmt: skip
    export(Checkpoint(theirs, config, tokenizer), "gguf", tmp_path / "wrong.gguf", "F32")
    complete = llama_cpp(tmp_path / "wrong.gguf")
    ids = tokenizer.encode(STORY)
    assert furthest(complete(ids)[0], weights, ids, config) > 5 * max(BOUNDS.values())


@pytest.mark.parametrize("name", list(SCALED_DOWN)[1:])
def test_llama_cpp_scales_rope_as_we_do(tmp_path, name):
    stored = checkpoint(name)
    export(stored, "gguf", tmp_path / "scaled.gguf")
    ids = make_tokens(stored.config, 450).tolist()
    theirs, _ = llama_cpp(tmp_path / "scaled.gguf")(ids)
    assert furthest(theirs, stored.weights, ids, stored.config) < 1e-5
    other = RopeScaling(8.0 if stored.config.rope_scaling.factor == 32 else 32.0)
    wrong = Config(**vars(stored.config) | {"rope_scaling": other})
    assert furthest(theirs, stored.weights, ids, wrong) > 1e-5  # the control


# Transformers


@pytest.mark.parametrize("name", SCALED_DOWN)
def test_transformers_reads_the_folder(tmp_path, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stored, out = checkpoint(name), tmp_path / "hf"
    export(stored, "huggingface", out)
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert model.config.tie_word_embeddings == stored.config.tied_output
    assert model.config.max_position_embeddings == stored.config.context_length
    assert set(model.generation_config.eos_token_id) == stored.tokenizer.stop_ids
    tokens = make_tokens(stored.config, 2, 470)
    with torch.inference_mode():
        theirs = model(tokens).logits
    close(forward(stored.weights, tokens, stored.config), theirs)
    wrong = load_file(out / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    wrong[key] = stored.weights["layers.0.attention.wq.weight"]
    model.load_state_dict(wrong, strict=False)
    with torch.inference_mode(), pytest.raises(AssertionError, match="differs"):  # the control
        close(forward(stored.weights, tokens, stored.config), model(tokens).logits)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.bos_token_id == stored.tokenizer.bos_id
    for text in [*TEXTS, *corpus(200)]:
        if "<|" not in text:  # transformers reads names in a text as special tokens
            assert tokenizer(text)["input_ids"] == stored.tokenizer.encode(text)
    said = ("system", " Be brief.\n"), ("user", "Hi  "), ("assistant", "Yes?"), ("user", "\nWho? ")
    turns = [{"role": role, "content": text} for role, text in said]
    theirs = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert theirs == stored.tokenizer.encode_chat(turns)


@pytest.mark.parametrize("release", ["3", "3.1"])
def test_the_tokenizer_is_the_one_that_transformers_converts(release):
    theirs = json.loads(llama_3s_tokenizer(TINY / "tokenizer.model", release).to_str())
    ours = tokenizer_json(tiny_tokenizer(release))
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["model"]["merges"] == [" ".join(pair) for pair in theirs["model"]["merges"]]
    assert ours["added_tokens"] == theirs["added_tokens"]
    names = [entry["content"] for entry in ours["added_tokens"]]
    assert names == hugging_faces_names(release)


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCALED_DOWN)
def test_metas_to_hugging_faces_to_gguf_to_metas_keeps_every_bit(tmp_path, name, dtype):
    stored = first = checkpoint(name, dtype)
    for i, to in enumerate(("meta", "huggingface", "gguf", "meta")):
        path = tmp_path / (f"{i}.gguf" if to == "gguf" else f"{i}")
        export(stored, to, path)
        stored = open_checkpoint(path)
        assert set(stored.weights) == set(first.weights)
        for key, tensor in first.weights.items():
            assert stored.weights[key].dtype == dtype and torch.equal(stored.weights[key], tensor)
        assert stored.config.sizes == first.config.sizes
        for key in ("norm_eps", "rope_theta", "rope_scaling", "tied_output", "context_length"):
            assert getattr(stored.config, key) == getattr(first.config, key)
        ours, theirs = stored.tokenizer, first.tokenizer
        assert (ours.ranks, ours.special, ours.stop_ids, ours.release) == (
            theirs.ranks, theirs.special, theirs.stop_ids, theirs.release)  # fmt: skip
        size = sum(f.stat().st_size for f in (path.iterdir() if path.is_dir() else [path]))
        table = 2048 * first.config.dim * dtype.itemsize
        values = first.config.n_parameters * dtype.itemsize
        assert values < size < values + table  # a tied table is in the file once


def test_another_tokenizer_takes_the_same_way(tmp_path):
    made = byte_level_tokenizer()
    config = Config(48, 1, 4, 2, 340, 7, 1e-5, 10000.0, 0.48, trained_length=1234)
    source = tmp_path / "source"
    source.mkdir()
    weights = make_weights(config, torch.bfloat16)
    weights["output.weight"][:262] = 0  # a merged token is the likeliest: llama.cpp shows no bytes
    save_file(halves(weights, config), source / "model.safetensors")
    (source / "config.json").write_text(
        json.dumps(config_json(config) | {"eos_token_id": [0, 2], "bos_token_id": 1})
    )
    made.save(str(source / "tokenizer.json"))
    export(open_checkpoint(source), "gguf", tmp_path / "other.gguf")
    export(open_checkpoint(tmp_path / "other.gguf"), "huggingface", tmp_path / "hf")
    export(open_checkpoint(tmp_path / "hf"), "meta", tmp_path / "metas")
    for path in ("other.gguf", "hf", "metas"):
        weights, its_config, tokenizer = load(tmp_path / path)
        assert its_config.trained_length == 1234 and its_config.sizes == config.sizes
        assert tokenizer.stop_ids == {0, 2} and tokenizer.unused == 340 - made.get_vocab_size()
        for text in [*TEXTS, *corpus(300)]:
            if "<|" not in text:  # `made` reads names in a text as special tokens
                assert tokenizer.encode(text) == made.encode(text, add_special_tokens=False).ids
                assert tokenizer.decode(tokenizer.encode(text)) == text
    complete = llama_cpp(tmp_path / "other.gguf")
    for text in TEXTS:
        assert complete(text) == complete(tokenizer.encode(text))


# What is refused, and what is left behind


def refused(stored, says, to, out, type=None):
    with pytest.raises(InputError) as error:
        export(stored, to, out, type)
    assert says in str(error.value)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path):
    config = Config(60, 1, 6, 2, V, 7, 1e-5, 500000.0, 0.48)
    stored = Checkpoint(make_weights(config), config, tiny := BYTES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").write_text("old")
    (tmp_path / "old.gguf").write_text("old")
    refused(stored, "to is 'onnx': expected one of", "onnx", tmp_path / "a")
    for to in ("huggingface", "meta"):
        refused(stored, "name a new folder, or an empty one", to, tmp_path / "full")
        refused(stored, "name a new folder, or an empty one", to, tmp_path / "old.gguf")
        refused(stored, "the type is 'Q8_0': expected one of F32", to, tmp_path / "a", "Q8_0")
    refused(stored, "exists: name a new file", "gguf", tmp_path / "old.gguf")
    refused(stored, "expected a name that ends with .gguf", "gguf", tmp_path / "a")
    refused(stored, "the type is 'Q4_K': expected one of F32", "gguf", tmp_path / "a.gguf", "Q4_K")
    refused(stored, "rows of 60 numbers: Q8_0 packs 32", "gguf", tmp_path / "a.gguf", "Q8_0")
    large = make_weights(config)
    large["layers.0.attention.wo.weight"][3, 5] = 1e5
    for to, out in (("gguf", "a.gguf"), ("huggingface", "a"), ("meta", "a")):
        says = "wo.weight has numbers up to 100000, too large for torch.float16"
        refused(stored._replace(weights=large), says, to, tmp_path / out, "float16")
    many = Tokenizer(tiny.ranks)
    many.stop_ids |= {1, 2}
    stored = stored._replace(tokenizer=many)
    refused(stored, "has 4 stop tokens", "gguf", tmp_path / "a.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "old.gguf"]
    assert [path.read_text() for path in tmp_path.glob("*/*")] == ["old"]


def test_a_tokenizer_that_llama_cpp_would_run_otherwise_is_refused(tmp_path):
    config = Config(48, 1, 4, 2, 340, 7, 1e-5, 10000.0, 0.48)
    for name, change in {
        "how it splits a text": {"pre_tokenizer": {"type": "Whitespace"}},
        "normalizer": {"normalizer": {"type": "NFC"}},
    }.items():
        content = json.loads(byte_level_tokenizer().to_str()) | change
        stored = Checkpoint(make_weights(config), config, from_content(content, "it"))
        refused(stored, f"cannot be written as GGUF ({name})", "gguf", tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to, out", [("gguf", "a.gguf"), ("huggingface", "a"), ("meta", "a")])
def test_an_interrupted_export_leaves_nothing(tmp_path, to, out):
    stored = checkpoint("Llama-3-8B")

    def read(name):
        if name == "layers.2.feed_forward.w2.weight":
            raise KeyboardInterrupt
        return stored.weights[name]

    weights = LazyWeights(stored.weights, read)
    with pytest.raises(KeyboardInterrupt):
        export(stored._replace(weights=weights), to, tmp_path / out)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed")
@pytest.mark.thorough
def test_an_export_that_is_killed_leaves_whole_files_or_none(tmp_path):
    code = """
import os, random, signal, sys
from llama3_scratch.checkpoint.export import export
from llama3_scratch.checkpoint.source import open_checkpoint
stored, chance = open_checkpoint("tiny"), random.Random(0)
for i in range(6):
    for to, name in (("gguf", f"{i}.gguf"), ("huggingface", f"{i}")):
        if not os.fork():
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.001, 0.3))
            export(stored, to, os.path.join(sys.argv[1], name))
            os._exit(0)
        os.wait()
        chance.random()
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    first = load("tiny").weights
    for path in tmp_path.iterdir():
        visible = path.suffix == ".gguf" or path.is_dir() and any(path.glob("[a-z]*"))
        if not path.name.startswith(".") and visible:
            weights = open_checkpoint(path).weights
            assert all(torch.equal(weights[name], first[name]) for name in first)


@pytest.mark.parametrize("to, out", [("gguf", "a.gguf"), ("huggingface", "a")])
@pytest.mark.parametrize("type", [None, "BF16"])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, to, out, type):
    stored, alive, most = checkpoint("Llama-3-8B"), set(), []

    def read(name):
        tensor = stored.weights[name].clone()
        alive.add(name)
        weakref.finalize(tensor, alive.discard, name)
        most.append(len(alive))
        return tensor

    weights = LazyWeights(stored.weights, read)
    export(stored._replace(weights=weights), to, tmp_path / out, type)
    assert max(most) <= 2
    kept = dict(weights)  # the control
    assert max(most) == len(kept)
