"""`Int8` and `Int4`: their products, their files, and the quantized tiny model that ships."""

import dataclasses
import io
import json
import re
import sys

import pytest
import torch
from helpers import BYTES, ODD, SCALED_DOWN, SMALL, close, make_tokens, make_weights, metas_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llama3_scratch import PROMPT, InputError, forward, generate, load, save
from llama3_scratch.__main__ import main
from llama3_scratch.checkpoint import packed as files
from llama3_scratch.checkpoint.export import export
from llama3_scratch.checkpoint.source import SHIPPED, open_checkpoint
from llama3_scratch.checkpoint.verify import checks
from llama3_scratch.model import linear
from llama3_scratch.quantize.packed import FEW, Int4, Int8, one_to_a_byte, packed, two_to_a_byte
from llama3_scratch.quantize.rounding import awq, dequantize, hessian, quip, rtn
from llama3_scratch.tiny import int4

BOUND = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # as the module says
HUNGRY = "Mia and Ben are friends. She is cold and he is hungry. What does Ben want?"


def rounded(weights, bits=4, group=32):
    return {name: rtn(weight, bits, group) for name, weight in weights.items()
            if name.startswith("layers.") and weight.dim() == 2}  # fmt: skip


def few_bits(config, dtype=torch.float32):
    """Random weights, most of them in 4 bits, the output matrix in 8."""
    weights = metas_weights(config, dtype)
    return packed(rounded(weights) | {"output.weight": Int8(weights["output.weight"])}, weights)


def test_two_codes_share_a_byte_the_first_in_the_low_bits():
    codes = torch.tensor([[1, 2, 15], [0, 9, 7]], dtype=torch.uint8)
    pairs = two_to_a_byte(codes)
    assert pairs.tolist() == [[0x21, 0x0F], [0x90, 0x07]]
    assert torch.equal(one_to_a_byte(pairs, 3), codes)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("shape", "bits", "group"), [
    ((48, 192), 4, 32), ((48, 192), 3, 64), ((32, 672), 4, None), ((48, 256), 2, 128),
    ((40, 192), 4, 32), ((48, 100), 4, 32), ((17, 33), 4, 5), ((48, 192), 8, None),
    ((17, 33), 8, None), ((48, 192), 8, 32),
])  # fmt: skip
def test_a_product_is_the_plain_one_within_the_bound(shape, bits, group, dtype):
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=draw)
    kinds = [(Int4 if bits <= 4 else Int8)(rtn(W, bits, group, symmetric=bits == 8))]
    if bits == 8 and group is None:
        kinds.append(Int8(W))
        close(kinds[1].dequantize(), W, 1 / 254 + 1e-6)
    X = torch.randn(9, shape[1], generator=draw) * torch.logspace(-1, 1, shape[1])
    by_awq = awq(W, X, bits, group)
    assert by_awq.columns.std() > 0.1
    kinds.append(type(kinds[0])(by_awq))
    assert torch.equal(kinds[0].dequantize(), dequantize(rtn(W, bits, group, bits == 8)))
    for matrix in kinds:
        assert matrix.shape == shape and matrix.dtype == torch.float32
        for leading in ((), (1,), (2, 1), (70,)):  # the last one is too many rows for a kernel
            x = torch.randn(*leading, shape[1], generator=draw).to(dtype)
            y, right = linear(x, matrix), x.double() @ matrix.dequantize().double().T
            assert y.dtype == dtype
            close(y.double(), right, BOUND[dtype])
        skew = torch.randn(2 * shape[1] + 1, generator=draw).to(dtype)[1:].view(2, -1)
        close(linear(skew, matrix), linear(skew.clone(), matrix), 1e-6)  # at an odd address
        other = matrix.of(**vars(matrix) | {"codes": matrix.codes.roll(1, 0), "kernels": {}})
        with pytest.raises(AssertionError):  # the control: the bound notices a wrong order
            close(linear(x, other).double(), right, BOUND[dtype])


def test_a_kernel_is_used_where_it_fits_and_not_missed_elsewhere(monkeypatch):
    matrix, x = Int4(rtn(torch.randn(48, 192), 4, 32)), torch.randn(3, 192)
    y = x @ matrix.T
    if hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        assert matrix.kernels[torch.float32]
    for broken in ({"kernel": lambda dtype: 1 / torch.ones(2).view(3)}, {"kernel": lambda _: None}):
        plain = matrix.of(**vars(matrix) | {"kernels": {}} | broken)
        close(x @ plain.T, y, BOUND[torch.float32])
        assert plain.kernels == {torch.float32: None}
    monkeypatch.delitem(FEW, torch.float32)
    fresh = Int4(matrix.rounded())
    close(x @ fresh.T, y, BOUND[torch.float32])
    assert not fresh.kernels
    wide = x.requires_grad_()
    (wide @ Int8(torch.eye(192)).T).sum().backward()  # gradients pass to x
    assert torch.allclose(x.grad, torch.ones_like(x))


def test_what_cannot_be_packed_is_refused():
    weights, W = make_weights(ODD), torch.randn(4, 6)
    made, turned = rtn(W, 5), quip(W, hessian(torch.randn(9, 6)), 4)
    for give in (
        lambda: Int4(made), lambda: Int4(torch.randn(4, 6)),
        lambda: Int4(turned), lambda: packed({"wq": made}, weights),
        lambda: packed({"tok_embeddings.weight": made}, weights),
    ):  # fmt: skip
        with pytest.raises(InputError):
            give()


def test_a_model_in_few_bits_is_the_model_of_its_numbers():
    weights, tokens = few_bits(ODD), make_tokens(ODD, 2, 9)
    assert isinstance(weights["layers.0.attention.wq.weight"], Int4)
    plain = dict(files.unpacked(weights))
    close(forward(weights, tokens, ODD), forward(plain, tokens, ODD))
    ids = tokens[0].tolist()
    assert list(generate(weights, ids, ODD, 5)) == list(generate(plain, ids, ODD, 5))
    assert not torch.equal(plain["output.weight"], make_weights(ODD)["output.weight"])
    there = weights["layers.0.attention.wq.weight"].to("meta", torch.float16)  # another device
    assert there.device.type == "meta" and there.dtype == torch.float16 and not there.kernels


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, SCALED_DOWN["Llama-3.2-1B"]], ids=["odd", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(tmp_path, config, dtype):
    weights, tokens = few_bits(config, dtype), make_tokens(config, 9)
    first, second = tmp_path / "1", tmp_path / "2"
    save(first, weights, config, BYTES)
    kept, read, _ = load(first)
    assert kept["norm.weight"].dtype == dtype and not read.tied_output
    assert torch.equal(forward(kept, tokens, read), forward(weights, tokens, config))
    assert kept["output.weight"] is kept["output.weight"]  # so that a kernel is made once
    save(second, kept, read, BYTES)
    names = [path.name for path in sorted(first.iterdir())]
    assert names == ["packed.safetensors", "params.json", "tokenizer.model"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert len({(first / name).stat().st_mode for name in names}) == 1
    other = load(first, torch.float16)
    assert {weight.dtype for weight in other.weights.values()} == {torch.float16}
    close(forward(other.weights, tokens, read), forward(weights, tokens, config), 3e-2)
    table = weights["tok_embeddings.weight"]
    output = table if config.tied_output else kept["output.weight"]
    save(tmp_path / "3", weights | {"output.weight": output}, config, BYTES)
    assert load(tmp_path / "3").config.tied_output == config.tied_output


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path / "plain", make_weights(SMALL), SMALL, BYTES)
    with pytest.raises(InputError, match="files of another checkpoint"):
        save(tmp_path / "plain", few_bits(SMALL), SMALL, BYTES)
    save(tmp_path / "few", few_bits(SMALL), SMALL, BYTES)
    before = {path.name: path.read_bytes() for path in (tmp_path / "few").iterdir()}

    def full(*_):  # what safetensors raises then
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(InputError, match="No space left"):
        save(tmp_path / "few", few_bits(SMALL, torch.bfloat16), SMALL, BYTES)
    assert {path.name: path.read_bytes() for path in (tmp_path / "few").iterdir()} == before


def changed(change):
    """Return a function that writes a file's tensors and settings again after a change."""

    def spoil(path):
        size = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + size])
        settings = json.loads(header["__metadata__"][files.ENTRY])
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors, settings)
        save_file(tensors, path, {files.ENTRY: json.dumps(settings)})

    return spoil


WQ = "layers.1.attention.wq.weight"
DAMAGED = {
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "cut short"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:99]), "cut short"),
    "empty": (lambda p: p.write_bytes(b""), "damaged"),
    "a page": (lambda p: p.write_text("<html>" * 99), "damaged"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "a folder"),
    "foreign": (lambda p: save_file({"norm.weight": torch.ones(2)}, p), "not a file"),
    "no settings": (lambda p: save_file(load_file(p), p, {files.ENTRY: "[]"}), "not a file"),
    "settings, no JSON": (lambda p: save_file(load_file(p), p, {files.ENTRY: "{"}), "damaged"),
    "no codes": (changed(lambda t, s: t.pop(f"{WQ}.codes")), "has no codes"),
    "codes of floats": (changed(lambda t, s: t.update({f"{WQ}.codes": t[f"{WQ}.codes"].float()})),
                        "has codes of [60, 30], torch.float32"),
    "scales for other groups": (changed(lambda t, s: s.update({WQ: ["Int4", 4, 16]})),
                                "has scales of [60, 2], torch.float32: expected [60, 4]"),
    "5 bits in 4": (changed(lambda t, s: s.update({WQ: ["Int4", 5, 32]})), "expected [Int4"),
    "an unknown kind": (changed(lambda t, s: s.update({WQ: ["Int2", 2, 32]})), "has the settings"),
    "a group of 0": (changed(lambda t, s: s.update({WQ: ["Int4", 4, 0]})), "has groups of 0"),
    "a matrix too many": (changed(lambda t, s: s.update(more=["Int4", 4, 32])), "is not a matrix"),
    "a packed norm": (changed(lambda t, s: s.update({"norm.weight": ["Int4", 4, 32]})),
                      "not a matrix"),
    "not packed at all": (changed(lambda t, s: s.pop(WQ)), f"{WQ}.codes is not expected"),
    "a tensor is missing": (changed(lambda t, s: t.pop("layers.2.ffn_norm.weight")), "is missing"),
    "a tensor of another type": (changed(lambda t, s: t.update({"layers.2.ffn_norm.weight":
                                 torch.ones(60).half()})), "is float16, expected float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_gives_a_clear_error(tmp_path, name, capsys):
    save(tmp_path, few_bits(SMALL), SMALL, BYTES)
    spoil, says = DAMAGED[name]
    spoil(tmp_path / files.WEIGHTS)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    shown = re.sub(r"layers\.\*|layers\.1(?=\.att)", "layers.1", str(error.value))
    assert says in shown and files.WEIGHTS in shown
    assert main(["--checkpoint", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_settings_of_another_model_are_noticed(tmp_path):
    save(tmp_path, few_bits(SMALL), SMALL, BYTES)
    params = dataclasses.replace(SMALL, n_layers=3).to_params()
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(InputError, match="does not fit params.json"):
        load(tmp_path)


def test_verify_finds_a_scale_that_is_not_finite(tmp_path):
    save(tmp_path, few_bits(SMALL), SMALL, BYTES)
    assert not [line for line in checks(tmp_path) if line[0] == "FAULT"]
    changed(lambda t, s: t[f"{WQ}.scales"].fill_(float("inf")))(tmp_path / files.WEIGHTS)
    faults = [text for verdict, _, text in checks(tmp_path) if verdict == "FAULT"]
    assert any(re.search(r"layers\.1\.attention\.wq", text) for text in faults)


# --- The model that ships -------------------------------------------------------------------------


def test_the_quantized_tiny_model_answers():
    """As the README's questions are answered by the full one; in bfloat16 as stored."""
    weights, config, tokenizer = load("tiny-int4")
    for dtype in (None, torch.float32):
        weights = load("tiny-int4", dtype).weights
        for prompt, answer in {PROMPT: "42", HUNGRY: " He wants bread."}.items():
            right = tokenizer.encode(answer, bos=False)
            new = list(generate(weights, tokenizer.encode(prompt), config, len(right)))
            assert tokenizer.decode(new) == answer
    matrices = [name for name, weight in weights.items() if isinstance(weight, Int4)]
    assert len(matrices) == 7 * config.n_layers
    assert {(weights[name].bits, weights[name].group) for name in matrices} == {(4, 32)}


def test_the_shipped_file_is_what_the_command_makes():
    """Of its first layer, whose codes do not depend on the others; another CPU may round a few."""
    full, shipped = load("tiny", torch.float32), load("tiny-int4").weights
    one = dataclasses.replace(full.config, n_layers=1)
    made = int4.rounded(full.weights, one, int4.calibration(full.tokenizer))
    assert len(made) == 7
    for name, again in made.items():
        stored = shipped[name].rounded()
        assert (again.codes == stored.codes).float().mean() > 0.999, name
        close(stored.scales, again.scales, 1e-3)
    plain = load("tiny").weights
    assert all(torch.equal(shipped[name], plain[name]) for name in plain if name not in made
               and not isinstance(shipped[name], Int4))  # fmt: skip


def test_the_command_writes_a_checkpoint(tmp_path, monkeypatch, capsys):
    def quick(weights, config, texts):
        return rounded(dict(weights))

    monkeypatch.setattr(int4, "rounded", quick)
    monkeypatch.setattr(int4, "N_TEXTS", 1)
    assert int4.main(["--out", str(tmp_path / "new")]) == 0
    weights, config, tokenizer = load(tmp_path / "new")
    assert list(generate(weights, tokenizer.encode(PROMPT), config, 1)) == [377]
    (tmp_path / "new" / "consolidated.00.pth").touch()
    assert int4.main(["--out", str(tmp_path / "new")]) == 2
    assert "another checkpoint" in capsys.readouterr().err


def test_the_command_line_runs_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("who has the kite?\n"))
    assert main(["--checkpoint", "tiny-int4", "--max-new", "4"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(f"{PROMPT}42")
    assert main([HUNGRY, "--checkpoint", "tiny-int4", "--max-new", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == " He wants bread."
    assert main(["chat", "--checkpoint", "tiny-int4", "--max-new", "3"]) == 0
    assert main(["verify", "tiny-int4"]) == 0
    assert main(["--checkpoint", "tiny-int5"]) == 2
    assert "'tiny-int4'" in capsys.readouterr().err


@pytest.mark.parametrize(("to", "type", "bound"), [
    ("meta", "float32", 0), ("meta", None, 3e-2), ("huggingface", "F32", 0), ("gguf", "F32", 0),
])  # fmt: skip
def test_an_export_holds_the_unpacked_numbers(tmp_path, to, type, bound):
    stored = open_checkpoint("tiny-int4")
    out = tmp_path / ("model.gguf" if to == "gguf" else "model")
    export(stored, to, out, type)
    weights, config, _ = load(out)
    plain = dict(files.unpacked(stored.weights))
    if not bound:
        assert all(torch.equal(weights[name], plain[name].float()) for name in plain)
    tokens = torch.tensor(stored.tokenizer.encode(PROMPT))
    close(forward(weights, tokens, config), forward(stored.weights, tokens, config), bound or 3e-2)
    assert SHIPPED["tiny-int4"].name == "int4"
