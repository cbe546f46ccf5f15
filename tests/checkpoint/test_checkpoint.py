"""Weights on disk: a saved checkpoint loads unchanged, and a bad one gives one clear error."""

import os
import pickle
import shutil
import sys
import weakref
import zipfile

import pytest
import torch
from helpers import (
    BYTES,
    ODD,
    PTH,
    SMALL,
    make_tokens,
    make_weights,
    refused,
    with_bytes,
    with_params,
    with_weights,
    write_shards,
)

from llama3_scratch import Config, InputError, forward, load, model, random_weights, save, watch
from llama3_scratch.__main__ import main
from llama3_scratch.checkpoint import huggingface, meta, source
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.verify import check_finite
from llama3_scratch.config import RopeScaling
from llama3_scratch.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path):
    """A good checkpoint in Meta's layout, in bfloat16."""
    save(tmp_path / "small", make_weights(SMALL, torch.bfloat16), SMALL, BYTES)
    return tmp_path / "small"


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_a_saved_checkpoint_loads_unchanged_or_cast(folder, dtype):
    files = {path.name for path in folder.iterdir()}
    assert files == {PTH, "params.json", "tokenizer.model"}
    weights, config, tokenizer = load(folder, dtype)
    saved = make_weights(SMALL, torch.bfloat16)
    assert config == SMALL and tokenizer.ranks == BYTES.ranks and list(weights) == list(saved)
    for name in saved:
        assert weights[name].dtype == (dtype or torch.bfloat16)
        assert torch.equal(weights[name], saved[name].to(weights[name].dtype))
    assert forward(weights, make_tokens(SMALL, 5), config).isfinite().all()


def test_metas_own_loader_reads_what_we_save(folder):
    """`torch.load` returns the state dictionary, and Meta's tokenizer reads its file."""
    from llama_models.llama3.tokenizer import Tokenizer as MetasTokenizer

    state = torch.load(folder / PTH, map_location="cpu", mmap=True, weights_only=True)
    assert torch.equal(state["norm.weight"], make_weights(SMALL, torch.bfloat16)["norm.weight"])
    assert MetasTokenizer(folder / "tokenizer.model").n_words == SMALL.vocab_size


def test_weights_are_memory_mapped(folder):
    """The tensors are in the file's own pages: nothing is copied until it is used."""
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("memory maps are read from /proc, which only Linux has")
    weights, _, _ = load(folder)
    spans = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip().endswith(str(folder / PTH)):
                spans.append([int(end, 16) for end in line.split()[0].split("-")])
    assert spans
    for tensor in weights.values():
        assert any(start <= tensor.data_ptr() < stop for start, stop in spans)


def test_a_file_larger_than_memory_gives_advice(folder, monkeypatch):
    """Linux does not map it; the error says what to do."""

    def refused(path, **arguments):
        raise RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "load", refused)
    with pytest.raises(InputError, match="more than this machine's memory.*overcommit_memory"):
        load(folder)


@pytest.mark.parametrize("n_files", [2, 10])
def test_metas_shards_are_joined(tmp_path, n_files):
    config = Config(40, 2, 20, 10, BYTES.vocab_size + 8, 20, 1e-5, 500000.0)
    tokenizer = Tokenizer(BYTES.ranks | {b"a%d" % i: 256 + i for i in range(8)})
    whole = make_weights(config)
    save(tmp_path, whole, config, tokenizer)
    write_shards(tmp_path, whole, n_files)
    weights, config, _ = load(tmp_path)
    assert list(weights) == list(whole) and len(weights) == len(whole)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(InputError, match="consolidated"):  # a shard is missing
        load(tmp_path)


def test_shards_of_indivisible_matrices_are_refused(tmp_path):
    """Three files of 170 rows have 510 of 512: two tokens would be missing without an error."""
    config = Config(60, 1, 6, 3, BYTES.vocab_size, 3, 1e-5, 500000.0)
    save(tmp_path, make_weights(config), config, BYTES)
    write_shards(tmp_path, make_weights(config), 3)
    with pytest.raises(InputError, match="cannot be split over 3 files"):
        load(tmp_path)


def test_a_tied_output_shares_memory(tmp_path):
    config = Config(60, 2, 6, 2, BYTES.vocab_size, 7, 1e-5, 500000.0, 0.48, RopeScaling(32.0), True)
    weights = random_weights(config, 0, torch.bfloat16)
    assert weights["output.weight"] is weights["tok_embeddings.weight"]
    save(tmp_path, weights, config, BYTES)
    once = (tmp_path / PTH).stat().st_size
    assert once < 2 * config.n_parameters + 20_000
    del weights["output.weight"]
    save(tmp_path / "without", weights, config, BYTES)
    for path in (tmp_path, tmp_path / "without"):
        for dtype in (None, torch.float32):
            loaded, again, _ = load(path, dtype)
            assert again == config
            output, table = loaded["output.weight"], loaded["tok_embeddings.weight"]
            assert torch.equal(output, table)
            assert dtype or output.data_ptr() == table.data_ptr()
            assert forward(loaded, make_tokens(config, 5), config).isfinite().all()


def test_cast_weights_are_freed(folder, monkeypatch):
    """What `watch` records of a layer keeps none of its weights in memory."""
    weights, config, _ = load(folder, torch.float32)
    made, look_up = [], LazyWeights.__getitem__

    def remembered(self, name):
        tensor = look_up(self, name)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(LazyWeights, "__getitem__", remembered)
    with watch(model.forward, model.block, model.attention, model.feed_forward) as seen:
        forward(weights, make_tokens(SMALL, 5), config)
    assert seen and len(made) == len(weights)
    assert "output.weight" in weights and len(made) == len(weights)  # `in` creates no tensor
    assert not any(tensor() is not None for tensor in made)


def test_load_checks_its_arguments(folder):
    for arguments, says in [
        ({"dtype": torch.int8}, "dtype is torch.int8: expected one of"),
        ({"dtype": "float32"}, "dtype is float32: expected one of"),
        ({"device": "abacus"}, "device abacus cannot be used here"),
        ({"directory": ""}, "'' is not a checkpoint"),
        ({"directory": "~nosuchuser/x"}, "is not a checkpoint"),
        ({"directory": "x" * 9999}, "is not a checkpoint"),
    ]:
        with pytest.raises(InputError, match=says):
            load(**{"directory": folder} | arguments)


def test_random_weights_depend_only_on_the_seed():
    one, same, other = (random_weights(SMALL, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["output.weight"], other["output.weight"])
    assert abs(one["layers.0.feed_forward.w2.weight"].std() * SMALL.ffn_dim**0.5 - 1) < 0.05


def test_load_finds_checkpoints_by_name(monkeypatch, folder):
    tiny, config, tokenizer = load("tiny")
    drawn, same_config, same_tokenizer = load("random")
    assert config == same_config and tokenizer.ranks == same_tokenizer.ranks
    assert list(tiny) == list(drawn)
    assert not torch.equal(tiny["output.weight"], drawn["output.weight"])
    monkeypatch.delenv("LLAMA3_CHECKPOINT", raising=False)
    assert load()[1] == config
    monkeypatch.setenv("LLAMA3_CHECKPOINT", str(folder))
    assert load()[1] == SMALL
    assert load("tiny")[1] == config


def test_an_interrupted_save_keeps_the_old_files(tmp_path, monkeypatch):
    """The three old files are unchanged, and there are no others."""
    save(tmp_path, make_weights(SMALL), SMALL, BYTES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(content, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, make_weights(ODD), ODD, load("tiny")[2])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Bad checkpoints


class Trap(str):
    """Unpickling this path makes a folder, unless unpickling is restricted to tensors."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


FAULTS = {
    # what is wrong: (how it is made, what the message says)
    "file of weights cut by a byte": (with_bytes(PTH, lambda b: b[:-1]), "cut short"),
    "empty file of weights": (with_bytes(PTH, lambda b: b""), "starts with b''"),
    "pointer in place of the file": (
        with_bytes(PTH, lambda b: b"version https://git-lfs.github.com/spec/v1"),
        "starts with b'version ', expected b'PK\\x03\\x04' (torch.save's zip format). Is it a Git"),
    "zip that is not a checkpoint": (
        lambda folder: zipfile.ZipFile(folder / PTH, "w").writestr("a.txt", "a"), "damaged"),
    "plain pickle": (with_bytes(PTH, lambda b: pickle.dumps({"a": 1})), "torch.save's zip format"),
    "a list, not a dictionary": (
        with_weights(lambda w: list(w.values())), "not hold a dictionary of named, dense tensors"),
    "numbers, not tensors": (with_weights(lambda w: {"norm.weight": 1.0}), "not hold a dictionary"),
    "no file of weights": (lambda folder: (folder / PTH).unlink(), "found none"),
    "file of weights is a folder": (
        lambda folder: ((folder / PTH).unlink(), (folder / PTH).mkdir()), "cannot be read"),
    "misshaped in every layer": (
        with_weights(lambda w: w.update({
            name: t.repeat(3, 1) for name, t in w.items() if "attention.wk" in name})),
        "layers.0-3.attention.wk.weight is [60, 60], expected [20, 60]"),
    "mixed types": (
        with_weights(lambda w: w.update({"norm.weight": torch.ones(60)})),
        "norm.weight is float32, expected bfloat16"),
    "all eight-bit": (
        with_weights(lambda w: {n: t.to(torch.float8_e4m3fn) for n, t in w.items()}),
        "not quantized"),
    "sparse tensors": (
        with_weights(lambda w: w.update({"norm.weight": w["norm.weight"].to_sparse()})), "dense"),
    "tensors without numbers": (
        with_weights(lambda w: w.update({"norm.weight": torch.ones(60, device="meta")})), "dense"),
    "tied weights that differ": (with_params(tied_output=True), "expected a tie"),
    "NaN": (
        with_weights(lambda w: w["layers.2.feed_forward.w2.weight"].view(-1)[7:8].fill_(torch.nan)
                     and None),
        "the logits are not finite"),
    "infinity": (
        with_weights(lambda w: w["norm.weight"][3:4].fill_(torch.inf) and None),
        "verify DIR` names the tensors"),
    "params.json missing": (
        lambda folder: (folder / "params.json").unlink(), "params.json cannot be read"),
    "params.json garbled": (with_bytes("params.json", lambda b: b[:-9]), "is not JSON"),
    "params.json not text": (with_bytes("params.json", lambda b: bytes(range(256))), "is not JSON"),
    "params.json of another model": (
        with_params(dim=120, n_layers=5), "belong to different models"),
    "params.json of another family": (with_params(model_type="gpt2"), "unknown key 'model_type'"),
    "params.json with huge numbers": (
        with_params(ffn_dim_multiplier=1e29), "w2.weight is [60, 77], expected [60, 1599"),
    "params.json with a billion layers": (
        with_params(n_layers=10**9),
        "has 39 tensors: expected those of the 1000000000 layers that params.json"),
    "a repeated key": (
        with_bytes("params.json", lambda b: b.replace(b"{", b'{"dim": 999,', 1)),
        "the key 'dim' occurs 2 times"),
    "another vocabulary size": (
        with_params(vocab_size=513), "but vocab_size in the settings is 513"),
    "tokenizer.model missing": (
        lambda folder: (folder / "tokenizer.model").unlink(), "tokenizer.model cannot be read"),
    "tokenizer.model garbled": (
        with_bytes("tokenizer.model", lambda b: b.replace(b"\n", b"")), "line 1"),
    "tokenizer.model of another model": (
        with_bytes("tokenizer.model", lambda b: b + b"YWE= 256\n"), "belong to different models"),
    "no such folder": (shutil.rmtree, "is not a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_checkpoint_gives_one_clear_error(folder, fault, capsys):
    spoil, says = FAULTS[fault]
    spoil(folder)
    assert refused(folder, says, capsys).startswith("error: ")


def test_a_good_checkpoint_gives_no_error(folder, capsys):
    """The control for the test above."""
    assert main(["--checkpoint", str(folder), "ab", "--max-new", "2"]) == 0
    assert "error" not in capsys.readouterr().err


def test_a_pickle_that_runs_code_is_refused_and_not_run(folder, tmp_path, capsys):
    trap = tmp_path / "sprung"
    torch.save({"norm.weight": Trap(trap)}, folder / PTH)
    refused(folder, "is refused: it holds more than tensors, and loading that could run a", capsys)
    assert not trap.exists()
    torch.load(folder / PTH, weights_only=False)  # the control: the trap works
    assert trap.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps permissions in another way")
@pytest.mark.parametrize("name", ["params.json", "tokenizer.model", PTH, ".", ".."])
def test_a_file_without_permission_gives_one_clear_error(folder, name, capsys):
    user = os.geteuid()
    if user == 0:  # root may read everything: become `nobody` for a moment
        for path in [folder, *folder.parents][:4]:
            path.chmod(path.stat().st_mode | 0o055)
    closed = (folder / name).resolve()  # from inside a closed folder there is no way back
    closed.chmod(0)
    os.seteuid(user or 65534)
    try:
        assert main(["--checkpoint", str(folder)]) == 2
    finally:
        os.seteuid(user)
        closed.chmod(0o755)
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert (name in shown and "Permission denied" in shown) or "may be read" in shown


@pytest.mark.parametrize(("file", "says"), [
    ("adapter_config.json", "an adapter"), ("model.Q4_K_M.gguf", "a GGUF file"),
    ("snapshots/abc/config.json", "huggingface_hub's cache"),
    ("original/params.json", "in its folder original/"),
])  # fmt: skip
def test_a_folder_that_is_something_else_is_named(tmp_path, folder, file, says, capsys):
    for where in (tmp_path / "other", folder):
        (where / file).parent.mkdir(parents=True, exist_ok=True)
        (where / file).write_text("{}")
    refused(tmp_path / "other", says, capsys)
    load(folder)  # the control: beside a checkpoint's own files it is no matter


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_a_folder_whose_name_is_no_utf8_is_named(folder, capsys):
    odd = os.fsdecode(os.fsencode(folder) + b"\xe8")
    folder.rename(odd)
    assert main(["--checkpoint", odd, "ab"]) == 2
    assert "is not UTF-8: rename the folder" in capsys.readouterr().err


def test_all_faults_of_a_checkpoint_are_listed(folder):
    others = {name: torch.ones(2, dtype=torch.bfloat16) for name in ("extra", "more")}
    with_weights(lambda w: {n: t for n, t in w.items() if "layers.3." not in n} | others)(folder)
    with pytest.raises(InputError) as error:
        load(folder)
    said = str(error.value)
    assert (said.count("is missing"), said.count("is not expected")) == (9, 2)
    assert "layers.3.attention.wq.weight is missing" in said and "extra is not expected" in said


def test_check_finite_names_every_bad_tensor():
    weights = make_weights(ODD)
    check_finite(weights)
    weights["norm.weight"][0] = torch.nan
    for i in (0, 1, 3):
        weights[f"layers.{i}.ffn_norm.weight"][1] = -torch.inf
    with pytest.raises(InputError) as error:
        check_finite(weights)
    assert "  norm.weight" in str(error.value)
    assert "  layers.0-1,3.ffn_norm.weight" in str(error.value)


def test_the_weights_decide_which_files_are_read(folder):
    """A second settings file beside them changes nothing; without weights the settings decide."""
    (folder / "config.json").write_text("{}")
    assert source.kind_of(folder) is meta and load(folder).config == SMALL
    (folder / PTH).rename(folder / "model.safetensors")
    assert source.kind_of(folder) is huggingface
    (folder / "model.safetensors").unlink()
    assert source.kind_of(folder) is meta
    (folder / "params.json").unlink()
    assert source.kind_of(folder) is huggingface
