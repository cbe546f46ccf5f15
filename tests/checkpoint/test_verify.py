"""`verify`: a good checkpoint passes; each fault has its line, and the other checks still run."""

import dataclasses
import hashlib
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import BYTES, PTH, SMALL, make_weights, with_bytes, with_params, with_weights

from llama3_scratch import PRESETS, Config, load, save
from llama3_scratch.__main__ import main
from llama3_scratch.checkpoint.verify import TOKENIZER_SHA256, checks
from llama3_scratch.config import RopeScaling

FILES = [PTH, "params.json", "tokenizer.model"]
CHECKS = ["config", *FILES, "RoPE", "tensors", "values", "tokenizer", "prompt"]


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "small", make_weights(SMALL, torch.bfloat16), SMALL, BYTES)
    return tmp_path / "small"


def verdicts(directory):
    """Return {what: (verdict, text)}, in order; nothing may be checked twice."""
    lines = list(checks(directory))
    table = {what: (verdict, text) for verdict, what, text in lines}
    assert len(table) == len(lines)
    return table


def faults(directory):
    return {what: text for what, (verdict, text) in verdicts(directory).items()
            if verdict == "FAULT"}  # fmt: skip


def write_list(folder, kind="md5", names=FILES):
    digests = [hashlib.new(kind, (folder / name).read_bytes()).hexdigest() for name in names]
    lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    (folder / "checklist.chk").write_text("".join(lines))


def test_tiny_has_no_fault(capsys):
    assert main(["verify", "tiny"]) == 0
    shown = capsys.readouterr()
    lines = [line.split(maxsplit=2) for line in shown.out.splitlines()]
    assert [what for _, what, _ in lines] == CHECKS and shown.err == ""
    assert {verdict for verdict, _, _ in lines} == {"ok", "skipped"}
    _, config, _ = load("tiny")
    assert f"{config.n_parameters:,} parameters" in shown.out and "17 ids" in shown.out
    columns = {line.index(what) for line, (_, what, _) in zip(
        shown.out.splitlines(), lines, strict=True)}  # fmt: skip
    assert columns == {9}


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_files_are_compared_with_metas_checklist(folder, kind):
    write_list(folder, kind)
    table = verdicts(folder)
    assert list(table) == ["config", "checklist.chk", *CHECKS[1:]]
    assert {verdict for verdict, _ in table.values()} == {"ok", "skipped"}
    assert table[PTH] == ("ok", f"{(folder / PTH).stat().st_size:,} bytes, "
                          f"{kind} as in checklist.chk")  # fmt: skip
    flipped = bytearray((folder / PTH).read_bytes())
    flipped[len(flipped) // 2] ^= 1  # the control: a bit that no other check notices
    (folder / PTH).write_bytes(flipped)
    assert f"bytes, {kind} " in faults(folder).pop(PTH) and set(faults(folder)) == {PTH}


def test_checklists_of_other_tools_and_files_in_folders_below(folder):
    """Any form that md5sum takes; a file below is compared as well, and the control is noticed."""
    (folder / "original").mkdir()
    shutil.copy(folder / PTH, folder / "original" / PTH)
    names = [*FILES, f"original/{PTH}"]
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names}
    forms = {
        "comments and blank lines": ["# MD5", "", *(f"{sums[n]}  {n}" for n in names), ""],
        "capitals and a star": [f"{sums[n].upper()} *./{n}" for n in names],
        "one space": [f"{sums[n]} {n}" for n in names],
        "BSD and macOS": [f"MD5 ({n}) = {sums[n]}" for n in names],
        "Windows": [f"{sums[n]}  {n}".replace("/", "\\") + "\r" for n in names],
    }
    for form, lines in forms.items():
        (folder / "checklist.chk").write_text("\n".join(lines) + "\n")
        table = verdicts(folder)
        assert {table[name][0] for name in names} == {"ok"} and not faults(folder), form
    data = bytearray((folder / names[-1]).read_bytes())
    data[-3000] ^= 1
    (folder / names[-1]).write_bytes(data)
    assert faults(folder).keys() == {names[-1]}


@pytest.mark.parametrize(("line", "says"), [
    ("0" * 32 + "  a\0b", "expected a file's MD5"), ("0" * 31 + "  a", "expected a file's MD5"),
    ("0" * 32 + "  ../a", "expected a file in the folder"),
    ("0" * 32 + "  /etc/passwd", "expected a file in the folder"),
    ("0" * 32 + f"  {PTH}\n" + "1" * 32 + f"  ./{PTH}", "line 2 names .* a second time"),
])  # fmt: skip
def test_a_line_of_a_checklist_that_names_no_file_is_a_fault(folder, line, says):
    (folder / "checklist.chk").write_text(line)
    assert re.search(says, faults(folder)["checklist.chk"])


def test_a_tokenizer_that_tidies_white_space_has_no_fault(folder):
    from tokenizers import Tokenizer as Made
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    made = Made(models.BPE())
    made.normalizer = normalizers.Strip()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the answer"], trainer)
    (folder / "tokenizer.model").unlink()
    made.save(str(folder / "tokenizer.json"))
    assert "prompt" not in faults(folder)


def shared(folder, n_files):
    """Write the weights in several files, as Meta does for large models."""
    whole = torch.load(folder / PTH, weights_only=True)
    for i in range(n_files):
        shard = {}
        for name, tensor in whole.items():
            by_columns = int(name.endswith(("wo.weight", "w2.weight")))
            parts = [tensor] * n_files if tensor.dim() == 1 else tensor.chunk(n_files, by_columns)
            shard[name] = parts[i].clone()
        torch.save(shard, folder / f"consolidated.{i:02d}.pth")


def test_metas_shards_are_checked(tmp_path):
    config = dataclasses.replace(SMALL, multiple_of=8)
    save(tmp_path, make_weights(config, torch.bfloat16), config, BYTES)
    shared(tmp_path, 2)
    write_list(tmp_path, names=[PTH, "consolidated.01.pth", *FILES[1:]])
    table = verdicts(tmp_path)
    assert table["consolidated.01.pth"][0] == table["values"][0] == "ok"
    (tmp_path / "consolidated.01.pth").unlink()
    found = faults(tmp_path)
    assert "No such file" in found["consolidated.01.pth"] and "[60, 60]" in found["tensors"]
    assert len(found) == 2


def wrong_list(folder):
    write_list(folder)
    text = (folder / "checklist.chk").read_text()
    (folder / "checklist.chk").write_text(text.replace(text[:4], "0000"))


def other_scaling(folder):
    with_params(rope_scaling=dataclasses.asdict(RopeScaling(8.0)), use_scaled_rope=True)(folder)


def without(name):
    return lambda folder: (folder / name).unlink()


FAULTS = {  # what is wrong: (how it is made, {the line: what it says})
    "a wrong hash in the list": (wrong_list, {PTH: "but in checklist.chk it is 0000"}),
    "an empty list": (
        lambda f: (f / "checklist.chk").touch(), {"checklist.chk": "the list is empty"}),
    "a web page in place of the list": (
        lambda f: (f / "checklist.chk").write_text("<html>\n"),
        {"checklist.chk": "line 1 is '<html>': expected a file's MD5"}),
    "a listed file is missing": (
        lambda f: (write_list(f), (f / "params.json").unlink()),
        {"config": "params.json cannot be read", "params.json": "No such file"}),
    "an empty file": (
        lambda f: (f / PTH).write_bytes(b""), {PTH: "0 bytes", "tensors": "starts with b''"}),
    "weights cut short": (
        with_bytes(PTH, lambda b: b[: len(b) // 2]), {"tensors": "cut short"}),
    "a tensor is missing": (
        with_weights(lambda w: {n: t for n, t in w.items() if n != "norm.weight"}),
        {"tensors": "norm.weight is missing, expected [60]"}),
    "another shape": (
        with_params(n_layers=5), {"tensors": "layers.4.attention.wq.weight is missing"}),
    "another type": (
        with_weights(lambda w: w.update({"norm.weight": torch.ones(60, dtype=torch.int8)})),
        {"tensors": "norm.weight is int8, expected bfloat16"}),
    "NaN": (
        with_weights(lambda w: w["layers.2.feed_forward.w2.weight"].view(-1)[7:8].fill_(math.nan)
                     and None),
        {"values": "layers.2.feed_forward.w2.weight"}),
    "config missing": (without("params.json"), {"config": "cannot be read"}),
    "tokenizer missing": (without("tokenizer.model"), {"tokenizer": "cannot be read"}),
    "tokenizer of another model": (
        with_bytes("tokenizer.model", lambda b: b + b"YWE= 256\n"),
        {"tokenizer": "belong to different models"}),
    "RoPE of another model": (other_scaling, {"RoPE": "factor=8.0"}),
    "three faults at once": (
        lambda f: (other_scaling(f), without("tokenizer.model")(f),
                   with_weights(lambda w: w["norm.weight"][1:2].fill_(math.inf) and None)(f)),
        {"RoPE": "small", "tokenizer": "cannot be read", "values": "norm.weight"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_line(folder, fault, monkeypatch, capsys):
    preset = dataclasses.replace(SMALL, rope_scaling=RopeScaling(32.0))
    if "RoPE" in FAULTS[fault][1]:  # a small model stands in for Llama-3.2-1B
        monkeypatch.setitem(PRESETS, "small", preset)
    spoil, says = FAULTS[fault]
    spoil(folder)
    found = faults(folder)
    assert found.keys() == says.keys()
    for what, text in says.items():
        assert text in found[what]
    assert {*CHECKS} - {"params.json", "tokenizer.model"} <= verdicts(folder).keys()
    assert main(["verify", str(folder)]) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if not line.startswith(" ")]
    assert {line.split()[1] for line in lines if line.startswith("FAULT")} == says.keys()
    assert shown.err == "" and "Traceback" not in shown.out


def test_a_good_folder_has_no_fault(folder):
    """The control for the test above."""
    assert not faults(folder)


def test_rope_is_compared_by_the_sizes(folder, monkeypatch):
    assert verdicts(folder)["RoPE"] == ("skipped", "not scaled; no Llama 3 has these sizes")
    monkeypatch.setitem(PRESETS, "small 3", SMALL)
    scaled = dataclasses.replace(SMALL, rope_scaling=RopeScaling(8.0))
    monkeypatch.setitem(PRESETS, "small 3.1", scaled)
    assert verdicts(folder)["RoPE"][0] == "ok"
    other_scaling(folder)
    verdict, text = verdicts(folder)["RoPE"]
    assert verdict == "ok" and "small 3 (not scaled) and small 3.1 (RopeScaling(factor=8" in text
    with_params(rope_scaling={"factor": 32.0})(folder)
    assert faults(folder).keys() == {"RoPE"}


def test_llama_3s_own_tokenizer_is_recognised(tmp_path):
    import llama_models

    source = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    assert hashlib.sha256(source.read_bytes()).hexdigest() == TOKENIZER_SHA256
    config = Config(12, 1, 6, 2, 128256, 8, 1e-5, 500000.0)
    save(tmp_path, make_weights(config, torch.bfloat16), config, BYTES)
    shutil.copy(source, tmp_path / "tokenizer.model")
    table = verdicts(tmp_path)
    assert "Llama 3's own file" in table["tokenizer.model"][1]
    assert table["prompt"] == ("ok", "the 17 ids of Llama 3")
    assert table["tokenizer"] == ("ok", "128,256 tokens")
    lines = source.read_bytes().splitlines()  # swap two tokens
    tokens = [line.split()[0] for line in lines]
    tokens[1820], tokens[4242] = tokens[4242], tokens[1820]
    changed = b"".join(b"%s %d\n" % pair for pair in zip(tokens, range(128000), strict=True))
    (tmp_path / "tokenizer.model").write_bytes(changed)
    found = faults(tmp_path)
    assert found.keys() == {"tokenizer.model", "prompt"} and "4242" in found["prompt"]


def test_a_missing_folder_is_one_fault(capsys):
    assert main(["verify", "nowhere"]) == 2
    shown = capsys.readouterr().out
    assert "FAULT    config               'nowhere' is not a checkpoint" in shown
    assert shown.count("skipped") == 5


@pytest.fixture
def hugging_faces(folder, tmp_path):
    """A model of the folder's sizes, saved by transformers itself in several shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SMALL.vocab_size, hidden_size=SMALL.dim, num_hidden_layers=SMALL.n_layers,
            num_attention_heads=SMALL.n_heads, num_key_value_heads=SMALL.n_kv_heads,
            intermediate_size=SMALL.ffn_dim, rms_norm_eps=1e-5, tie_word_embeddings=False,
            rope_theta=500000.0,
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    shutil.copy(folder / "tokenizer.model", tmp_path / "theirs")
    return tmp_path / "theirs"


def test_hugging_faces_files_are_checked(hugging_faces):
    shards = sorted(path.name for path in hugging_faces.glob("*.safetensors"))
    table = verdicts(hugging_faces)
    assert len(shards) > 1 and {*shards, "config.json", "model.safetensors.index.json"} < {*table}
    assert {verdict for verdict, _ in table.values()} == {"ok", "skipped"}
    assert table["values"][0] == table["tensors"][0] == table["prompt"][0] == "ok"
    settings = json.loads((hugging_faces / "config.json").read_text())
    (hugging_faces / "config.json").write_text(json.dumps(settings | {"hidden_act": "gelu"}))
    assert "hidden_act is 'gelu'" in faults(hugging_faces)["config"]
    (hugging_faces / "config.json").write_text(json.dumps(settings))
    (hugging_faces / shards[1]).unlink()
    found = faults(hugging_faces)
    assert found.keys() == {"tensors"} and shards[1] in found["tensors"]


def in_the_cache(path):
    """As in huggingface_hub's cache: a link to a blob that is named by its SHA-256."""
    blob = path.parent.parent / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(blob)


def in_a_folder(path):
    """As huggingface_hub leaves it with --local-dir: a note of commit, hash and time beside it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'0' * 40}\n{digest}\n1712656091.123\n")


def in_a_folder_above(path):
    """The same for `original/consolidated.00.pth`, where Hugging Face has Meta's files."""
    in_a_folder(path)
    download = path.parent.parent / ".cache" / "huggingface" / "download"
    download.mkdir(parents=True)
    (path.parent / ".cache" / "huggingface" / "download").rename(download / path.parent.name)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
@pytest.mark.parametrize("keep", [in_the_cache, in_a_folder, in_a_folder_above])
def test_files_are_compared_with_huggingface_hubs_hashes(folder, keep):
    keep(folder / PTH)
    verdict, text = verdicts(folder)[PTH]
    assert verdict == "ok" and "sha256 as in" in text and "huggingface_hub" in text
    data = bytearray((folder / PTH).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / PTH).write_bytes(data)
    assert faults(folder).keys() == {PTH}
