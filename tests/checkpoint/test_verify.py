"""`verify`: a good checkpoint passes; each fault has its line, and the other checks still run."""

import dataclasses
import hashlib
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    BYTES,
    PTH,
    SMALL,
    byte_level_tokenizer,
    flip_a_bit,
    make_weights,
    with_bytes,
    with_params,
    with_weights,
    write,
    write_shards,
)

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
    lines = shown.out.splitlines()
    assert [line[9:].split()[0] for line in lines] == CHECKS and shown.err == ""  # one column
    assert {line[:9] for line in lines} == {"ok       ", "skipped  "}
    _, config, _ = load("tiny")
    assert f"{config.n_parameters:,} parameters" in shown.out and "17 ids" in shown.out


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_files_are_compared_with_metas_checklist(folder, kind):
    write_list(folder, kind)
    table = verdicts(folder)
    assert list(table) == ["config", "checklist.chk", *CHECKS[1:]]
    assert {verdict for verdict, _ in table.values()} == {"ok", "skipped"}
    size = (folder / PTH).stat().st_size
    assert table[PTH] == ("ok", f"{size:,} bytes, {kind} as in checklist.chk")
    flip_a_bit(folder / PTH)  # the control: one that no other check notices
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
    flip_a_bit(folder / names[-1])
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
    from tokenizers import normalizers

    made = byte_level_tokenizer()
    made.normalizer = normalizers.Strip()
    (folder / "tokenizer.model").unlink()
    made.save(str(folder / "tokenizer.json"))
    assert "prompt" not in faults(folder)


def test_metas_shards_are_checked(tmp_path):
    config = dataclasses.replace(SMALL, multiple_of=8)
    save(tmp_path, make_weights(config, torch.bfloat16), config, BYTES)
    write_shards(tmp_path, make_weights(config, torch.bfloat16), 2)
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
    "weights cut short": (with_bytes(PTH, lambda b: b[: len(b) // 2]), {"tensors": "cut short"}),
    "a tensor is missing": (
        with_weights(lambda w: {n: t for n, t in w.items() if n != "norm.weight"}),
        {"tensors": "norm.weight is missing, expected [60]"}),
    "another type": (
        with_weights(lambda w: w.update({"norm.weight": torch.ones(60, dtype=torch.int8)})),
        {"tensors": "norm.weight is int8, expected bfloat16"}),
    "NaN": (
        with_weights(lambda w: w["layers.2.feed_forward.w2.weight"].view(-1)[7:8].fill_(math.nan)
                     and None),
        {"values": "layers.2.feed_forward.w2.weight"}),
    "tokenizer of another model": (
        with_bytes("tokenizer.model", lambda b: b + b"YWE= 256\n"),
        {"tokenizer": "belong to different models"}),
    "RoPE of another model": (other_scaling, {"RoPE": "factor=8.0"}),
    "three faults at once": (
        lambda f: (other_scaling(f), (f / "tokenizer.model").unlink(),
                   with_weights(lambda w: w["norm.weight"][1:2].fill_(math.inf) and None)(f)),
        {"RoPE": "small", "tokenizer": "cannot be read", "values": "norm.weight"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_line(folder, fault, monkeypatch, capsys):
    spoil, says = FAULTS[fault]
    if "RoPE" in says:  # a small model stands in for Llama-3.2-1B
        preset = dataclasses.replace(SMALL, rope_scaling=RopeScaling(32.0))
        monkeypatch.setitem(PRESETS, "small", preset)
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


def test_hugging_faces_files_are_checked(tmp_path):
    write(tmp_path, SMALL, make_weights(SMALL), "200KB")  # transformers does it, in several files
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    table = verdicts(tmp_path)
    assert len(shards) > 1 and {*shards, "config.json", "model.safetensors.index.json"} < {*table}
    assert {verdict for verdict, _ in table.values()} == {"ok", "skipped"}
    assert table["values"][0] == table["tensors"][0] == table["prompt"][0] == "ok"
    settings = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(settings.replace('"silu"', '"gelu"'))
    assert "hidden_act is 'gelu'" in faults(tmp_path)["config"]
    (tmp_path / "config.json").write_text(settings)
    (tmp_path / shards[1]).unlink()
    found = faults(tmp_path)
    assert found.keys() == {"tensors"} and shards[1] in found["tensors"]


def in_the_cache(path):
    """As in huggingface_hub's cache: a link to a blob that is named by its SHA-256."""
    blob = path.parent.parent / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(blob)


def in_a_folder(path, base=None):
    """As huggingface_hub leaves it with --local-dir: a note of commit, hash and time in `base`."""
    digest, base = hashlib.sha256(path.read_bytes()).hexdigest(), base or path.parent
    note = base / ".cache/huggingface/download" / f"{path.relative_to(base)}.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'0' * 40}\n{digest}\n1712656091.123\n")


def in_a_folder_above(path):
    """The same for `original/consolidated.00.pth`, where Hugging Face has Meta's files."""
    in_a_folder(path, path.parent.parent)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
@pytest.mark.parametrize("keep", [in_the_cache, in_a_folder, in_a_folder_above])
def test_files_are_compared_with_huggingface_hubs_hashes(folder, keep):
    keep(folder / PTH)
    verdict, text = verdicts(folder)[PTH]
    assert verdict == "ok" and "sha256 as in" in text and "huggingface_hub" in text
    flip_a_bit(folder / PTH)
    assert faults(folder).keys() == {PTH}
