"""`verify`: a good checkpoint passes; each fault has its line, and the other checks still run."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from helpers import (
    BYTES,
    PTH,
    SMALL,
    byte_level_tokenizer,
    config_json,
    flip_a_bit,
    make_weights,
    with_bytes,
    with_params,
    with_weights,
    write,
    write_shards,
)

from llama3_scratch import PRESETS, PROMPT, Config, InputError, forward, generate, load, save
from llama3_scratch.__main__ import main
from llama3_scratch.checkpoint import against, huggingface, verify
from llama3_scratch.checkpoint.export import export
from llama3_scratch.checkpoint.source import TINY
from llama3_scratch.checkpoint.verify import TOKENIZER_SHA256, checks
from llama3_scratch.config import RopeScaling
from llama3_scratch.errors import visible
from llama3_scratch.model import rope_frequencies

FILES = [PTH, "params.json", "tokenizer.model"]
CHECKS = ["config", *FILES, "RoPE", "tensors", "values", "tokenizer", "prompt", "next token"]


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
    assert [line[9:29].rstrip() for line in lines] == CHECKS and shown.err == ""  # one column
    assert {line[:9] for line in lines} == {"ok       ", "skipped  "}
    _, config, _ = load("tiny")
    assert f"{config.n_parameters:,} parameters" in shown.out and "17 ids" in shown.out
    assert "377, '42', after the prompt" in shown.out


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_files_are_compared_with_metas_checklist(folder, kind):
    write_list(folder, kind)
    table = verdicts(folder)
    assert list(table) == ["config", "checklist.chk", *CHECKS[1:]]
    assert {verdict for verdict, _ in table.values()} == {"ok", "skipped"}
    size = (folder / PTH).stat().st_size
    says = f"{size:,} bytes, {kind} as in checklist.chk, CRC-32 of 45 records"
    assert table[PTH] == ("ok", says)
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
    ("0" * 32 + "  C:\\secrets", "expected a file in the folder"),
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
        {"tensors": "torch.CharStorage"}),
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
    assert "2 of meta-llama/llama3 llama/test_tokenizer.py, 4 of llama.cpp" in table["ids"][1]
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
    assert shown.count("skipped") == 6


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


# A flipped bit, files that change, names that are no names, many names


def test_a_flipped_bit_is_found_without_any_list(folder):
    assert verdicts(folder)[PTH][0] == "ok"
    part = load(folder).weights["layers.2.attention.wo.weight"].view(torch.uint8)[7].numpy()
    data = bytearray((folder / PTH).read_bytes())
    data[data.index(part.tobytes()) + 3] ^= 1
    (folder / PTH).write_bytes(data)
    assert "Bad CRC-32 for file" in faults(folder)[PTH] and faults(folder).keys() == {PTH}


def test_a_file_saved_without_crcs_is_not_damaged(folder):
    weights = make_weights(SMALL, torch.bfloat16)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, folder / PTH)
    finally:
        torch.serialization.set_crc32_options(True)
    assert verdicts(folder)[PTH] == (
        "skipped", f"{(folder / PTH).stat().st_size:,} bytes, no hash is known to compare with",
    )  # fmt: skip


@pytest.mark.parametrize("change", ["a number", "the type"])
def test_shards_that_disagree_are_of_different_models(tmp_path, change):
    config = dataclasses.replace(SMALL, multiple_of=8)
    save(tmp_path, make_weights(config, torch.bfloat16), config, BYTES)
    write_shards(tmp_path, make_weights(config, torch.bfloat16), 2)
    assert not faults(tmp_path)
    path = tmp_path / "consolidated.01.pth"
    shard = torch.load(path, weights_only=True)
    if change == "a number":
        shard["layers.2.ffn_norm.weight"][7] *= 2
    else:
        shard = {name: tensor.float() for name, tensor in shard.items()}
    torch.save(shard, path)
    found = faults(tmp_path)
    name = "layers.2.ffn_norm.weight" if change == "a number" else "layers.0-3.ffn_norm.weight"
    assert found.keys() == {"tensors"}
    assert f"{name} differs from that in consolidated.00.pth" in found["tensors"]
    with pytest.raises(InputError, match="belongs to another model than consolidated.00.pth"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda path: os.utime(path, (5, 5)), lambda path: path.unlink()]
)
def test_a_file_that_changes_meanwhile_is_a_fault(folder, change):
    lines = []
    for line in checks(folder):
        lines.append(line)
        if line[1] == "values":
            change(folder / "params.json")
    assert lines[-1][:2] == ("FAULT", "unchanged") and "params.json" in lines[-1][2]
    assert "unchanged" not in verdicts(folder)  # the control


ESCAPES = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\u202e"


def with_a_strange_tensor(folder):
    torch.save(make_weights(SMALL) | {ESCAPES: torch.ones(3)}, folder / PTH)


STRANGE = {
    "a tensor": with_a_strange_tensor,
    "a file": lambda f: (f / f"tokenizer.{ESCAPES}").write_text("x"),
    "a file with a line that looks like a verdict": lambda f: (
        f / "tokenizer.\nok       values").write_text("x"),
    "a file of weights": lambda f: (f / f"consolidated.{ESCAPES}.pth").touch(),
    "a line of the checklist": lambda f: (f / "checklist.chk").write_text(f"{0:032}  {ESCAPES}"),
    "settings": with_params(**{ESCAPES: 1}),
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
@pytest.mark.parametrize("what", STRANGE)
def test_control_characters_of_files_are_shown_and_not_sent(folder, what, capsys):
    STRANGE[what](folder)
    main(["verify", str(folder)]), main(["--checkpoint", str(folder), "ab"])
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "\\x1b]52" in text or "\\nok " in text
    assert not re.search("[\0-\b\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert sum(line.startswith("ok       values") for line in shown.out.splitlines()) <= 1


def test_visible_text_keeps_what_is_no_command():
    kept = "a\tb\n\r\nÄ 👩\u200d👩 שלום e\u0301"
    assert visible(kept) == kept and visible("\r\x1b\x9b") == r"\r\x1b\x9b"
    assert visible("\udc80") == r"\udc80"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize("name", [PTH, "params.json", "tokenizer.model", "checklist.chk"])
def test_a_pipe_in_place_of_a_file_is_a_fault(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert "a pipe or a device" in faults(folder)[name]


@pytest.mark.thorough
def test_many_unexpected_names_take_seconds(tmp_path):
    save(tmp_path, {}, SMALL, BYTES)
    (tmp_path / PTH).unlink(), (tmp_path / "params.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config_json(SMALL)))
    empty = {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"model.layers.{i}": empty for i in range(60_000)}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    began = time.process_time()
    assert "is not expected" in faults(tmp_path)["tensors"]
    assert time.process_time() - began < 20  # each compared with each: minutes


def test_settings_that_claim_many_layers_take_no_memory(folder):
    with_params(n_layers=2**31)(folder)
    began = time.process_time()
    assert "expected those of the 2147483648 layers" in faults(folder)["tensors"]
    assert time.process_time() - began < 5


# What is published


FACTS = """
[[model]]
name = "small"
preset = "small"
source = "a test"
files = [{hashes}]
[[model]]
name = "small-instruct"
preset = "small"
source = "a test"
files = ["{other}"]
[[size]]
presets = ["small"]
source = "a list"
[size.bytes]
"{file}" = {size}
[[answer]]
models = ["small"]
prompt = "ab"
entropy = {entropy}
source = "a paper"
[answer.next]
{next}
[[answer]]
models = ["small"]
prompt = "some words"
bos = false
greedy = {greedy}
source = "a notebook"
"""


@pytest.fixture
def published(folder, monkeypatch):
    """Return a function that publishes facts about the model in `folder`, a few of them changed."""
    monkeypatch.setitem(PRESETS, "small", SMALL)
    weights, config, tokenizer = load(folder, torch.float32)
    logits = forward(weights, torch.tensor(tokenizer.encode("ab")), config)[-1]
    p = logits.softmax(-1)
    likeliest = [int(i) for i in p[:256].topk(2).indices if chr(int(i)).isprintable()]
    letter = next(i for i in [*likeliest, 97] if 35 <= i < 92)
    prompt = tokenizer.encode("some words", bos=False)
    facts = {
        "hashes": f'"{hashlib.sha256((folder / PTH).read_bytes()).hexdigest()}"', "other": "0" * 64,
        "file": PTH, "size": (folder / PTH).stat().st_size, "entropy": float(-(p * p.log2()).sum()),
        "next": f'"{chr(letter)}" = {float(p[letter]):.6f}',
        "greedy": list(generate(weights, prompt, config, 5)),
    }  # fmt: skip

    def publish(**changes):
        path = folder.parent / f"known{len(list(folder.parent.iterdir()))}.toml"
        path.write_text(FACTS.format(**facts | changes))
        monkeypatch.setattr(verify, "KNOWN", path)

    publish()
    return publish


def answers(folder):
    return [(verdict, text) for verdict, _, text in against.against_published(folder)]


def test_a_released_model_is_recognised_by_its_hashes(folder, published):
    table = verdicts(folder)
    assert table["model"] == ("ok", "small, by the hashes of its weights (a test)")
    assert "sha256 of small (a test)" in table[PTH][1] and not faults(folder)
    other_scaling(folder)  # the control: another model's settings
    assert "rope_scaling is RopeScaling(factor=8.0" in faults(folder)["model"]
    assert "expected None" in faults(folder)["model"]


def test_a_fine_tune_is_no_fault(folder, published):
    with_weights(lambda w: {**w, "norm.weight": 2 * w["norm.weight"]})(folder)
    verdict, text = verdicts(folder)["model"]
    assert verdict == "skipped" and "sizes of small, small-instruct; the hashes" in text
    assert not faults(folder)


def test_files_of_different_models_in_one_folder_are_a_fault(tmp_path, published, monkeypatch):
    config = dataclasses.replace(SMALL, multiple_of=8)
    monkeypatch.setitem(PRESETS, "small", config)
    save(tmp_path, make_weights(config, torch.bfloat16), config, BYTES)
    write_shards(tmp_path, make_weights(config, torch.bfloat16), 2)
    paths = [tmp_path / f"consolidated.0{i}.pth" for i in range(2)]
    one, two = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    published(hashes=f'"{one}", "{two}"')
    assert verdicts(tmp_path)["model"][0] == "ok"
    published(hashes=f'"{one}"', other=two)
    says = "consolidated.00.pth is small; consolidated.01.pth is small-instruct"
    assert says in faults(tmp_path)["model"]
    published(hashes=f'"{one}"')
    assert "consolidated.01.pth is unknown" in faults(tmp_path)["model"]


def test_sizes_of_released_files_are_named_where_no_hash_is_known(tmp_path, published):
    write(tmp_path, SMALL, make_weights(SMALL), "9MB")
    name = "model.safetensors"
    published(file=name, size=(tmp_path / name).stat().st_size)
    says = verdicts(tmp_path)[name]
    assert says[0] == "skipped" and "bytes, as many as in a list, no hash is known" in says[1]
    published(file=name, size=77)  # the control: of a fine-tune, which is no fault
    assert "as many as" not in verdicts(tmp_path)[name][1] and not faults(tmp_path)


def test_published_answers_are_compared(folder, published):
    found = answers(folder)
    assert [verdict for verdict, _ in found] == ["ok", "ok"]
    assert "probabilities differ by at most 0.00000" in found[0][1] and "(a paper)" in found[0][1]
    assert "5 of 5 tokens are the likeliest, published of small (a notebook)" in found[1][1]
    published(entropy=5.0)
    assert [verdict for verdict, _ in answers(folder)] == ["FAULT", "ok"]
    published(greedy=[1, 2, 3, 4, 5])
    found = answers(folder)
    assert [verdict for verdict, _ in found] == ["ok", "FAULT"]
    assert "0 of 5 tokens" in found[1][1] and "logits below" in found[1][1]


def test_other_answers_of_an_unknown_file_are_no_fault(folder, published):
    with_weights(lambda w: {**w, "norm.weight": 2 * w["norm.weight"]})(folder)
    found = answers(folder)
    assert [verdict for verdict, _ in found][0] == "skipped"
    assert "is it a fine-tune or another revision?" in found[0][1]


def test_nothing_is_published_of_tiny():
    assert [verdict for verdict, _ in answers("tiny")] == ["skipped"]


def test_the_published_facts_are_of_llama_3():
    """Each token of a distribution is one token, each model has a preset, each text its ids."""
    import llama_models

    from llama3_scratch import Tokenizer

    source = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    tokenizer, facts = Tokenizer.from_file(source), verify.known_facts()
    assert facts == tomllib.loads(verify.KNOWN.read_text("utf-8"))
    assert {model["preset"] for model in facts["model"]} <= PRESETS.keys()
    hashes = [hash for model in facts["model"] for hash in model["files"]]
    assert len({*hashes}) == len(hashes) and all(re.fullmatch("[0-9a-f]{64}", h) for h in hashes)
    assert len(facts["ids"]) == 13 and verify._ids(tokenizer)
    names = {model["name"] for model in facts["model"]}
    for answer in facts["answer"]:
        assert {*answer["models"]} <= names and answer["source"]
        for token in answer.get("next", ()):
            assert len(tokenizer.encode(token, bos=False)) == 1, token
        if "next" not in answer:
            ids = answer.get("greedy") or tokenizer.encode(answer["says"], bos=False)
            assert ids and max(ids) < len(tokenizer.ranks) and min(ids) >= 0


PUBLISHED_ROTATIONS = {  # Rohanr14/Paged-Infer@aeea0bc4 tests/fixtures/llama3_reference/rope.json
    "Llama-3.1-8B": (28, [.00321145, .00216657, .00137189, 8.567515e-4, 5.248460e-4, 3.126936e-4,
                          1.785078e-4, 9.556212e-5], 3.068926e-7),
    "Llama-3.2-1B": (14, [.00321145, .001290548, 4.29557e-4, 9.70829e-5, 1.946164e-5, 1.291477e-5],
                     9.418306e-8),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_ROTATIONS)
def test_the_scaled_frequencies_are_the_published_ones(name):
    first, middle, last = PUBLISHED_ROTATIONS[name]
    found = rope_frequencies(PRESETS[name])
    expected = torch.tensor([*middle, last])
    torch.testing.assert_close(
        torch.cat([found[first : first + len(middle)], found[-1:]]), expected, rtol=5e-6, atol=0
    )
    unscaled = rope_frequencies(dataclasses.replace(PRESETS[name], rope_scaling=None))
    assert unscaled[-1] > 7 * last  # the control


# transformers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_answers_are_those_of_transformers(monkeypatch, dtype):
    if dtype != torch.float32:
        monkeypatch.setattr(against, "spare_ram", lambda: 0)
    stored = load("tiny", dtype)
    monkeypatch.setattr(against, "opened", lambda _: (TINY, stored))
    lines = list(against.against_transformers("tiny"))
    assert [line[:2] for line in lines] == [("ok", "transformers")] * 10
    assert f"17 tokens, ending 'erything is ', in {str(dtype)[6:]}" in lines[0][2]
    assert "next token 377, '42', in both" in lines[0][2]


def test_transformers_reads_hugging_faces_folders_itself(tmp_path):
    out = tmp_path / "out"
    export(load("tiny"), "huggingface", out)
    lines = list(against.against_transformers(out))
    assert [line[:2] for line in lines] == [("ok", "transformers' ids")] + [
        ("ok", "transformers")
    ] * 10
    import transformers

    ((verdict, _, text),) = against._same_ids(transformers, out, [[7]] * 10)  # the control
    assert verdict == "FAULT" and "(texts: 10)" in text


@pytest.mark.parametrize("of", ["Meta's files", "Hugging Face's files"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_order_of_rows_is_a_fault(tmp_path, monkeypatch, of, dtype):
    """The control: wq and wk in the order of the other kind of files."""
    source = "tiny"
    if of == "Hugging Face's files":
        source = tmp_path / "out"
        export(load("tiny"), "huggingface", source)
    if dtype != torch.float32:
        monkeypatch.setattr(against, "spare_ram", lambda: 0)
    monkeypatch.setattr(huggingface, "in_metas_order", lambda weight, _: weight)
    monkeypatch.setattr(huggingface, "in_hugging_faces_order", lambda weight, _: weight)
    lines = [line for line in against.against_transformers(source) if line[1] == "transformers"]
    assert {verdict for verdict, _, _ in lines} == {"FAULT"}


def test_without_transformers_there_is_one_message(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["verify", "tiny", "--against", "transformers"]) == 2
    assert "pip install transformers" in capsys.readouterr().err


# verify and load agree


def runs(folder):
    """Whether a folder loads and predicts a token after the prompt."""
    try:
        weights, config, tokenizer = load(folder)
        ids = tokenizer.encode(PROMPT)[: config.context_length - 1]
        return len(list(generate(weights, ids, config, 1))) == 1
    except InputError:
        return False


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_ok_runs_and_what_does_not_run_is_a_fault(folder, fault):
    FAULTS[fault][0](folder)
    assert faults(folder) or runs(folder)


@pytest.mark.thorough
def test_verify_and_load_agree_on_spoiled_files(tmp_path):
    from test_fuzz_files import Spoiler, checkpoints

    paths = checkpoints(tmp_path)
    assert all(runs(path.parent) and not faults(path.parent) for path in paths)
    spoil, refused = Spoiler(3), 0
    for _ in range(60):
        path = spoil.chance.choice(paths)
        whole = path.read_bytes()
        path.write_bytes(spoil(path, whole))
        works = runs(path.parent)
        refused += not works
        assert faults(path.parent) or works, path
        path.unlink()  # a mapping of it may still exist
        path.write_bytes(whole)
    assert 30 < refused < 60


def test_verify_checks_gguf_files(tmp_path):
    path = tmp_path / "model.gguf"
    export(load("tiny"), "gguf", path, "F16")
    table = verdicts(path)
    assert list(table) == ["config", "model.gguf", "RoPE", "tensors", "values", "tokenizer",
                           "prompt", "next token"]  # fmt: skip
    assert not faults(path) and table["next token"][1].startswith("377, '42'")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert faults(path)
