"""The exercises of notebook 02: right answers pass, and each mistake gets the word meant for it."""

import struct

import numpy
import pytest
import torch
import torch.nn.functional as F

from llama3_scratch import check
from llama3_scratch.model import rms_norm


def said(capsys, checker, answer):
    checker(answer)
    return capsys.readouterr().out.strip()


def my_n_parameters(V, L, D, N, K, H, F):
    attention = 2 * N * H * D + 2 * K * H * D
    return 2 * V * D + L * (attention + 3 * F * D + 2 * D) + D


def my_read_row(raw, D, id):
    row = raw[2 * D * id : 2 * D * (id + 1)]
    return [struct.unpack("<f", b"\0\0" + row[i : i + 2])[0] for i in range(0, 2 * D, 2)]


def my_layer_norm(x, weight, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def my_fold(layer):
    folded = dict(layer)
    for norm, readers in (
        ("attention_norm.weight", ("attention.wq", "attention.wk", "attention.wv")),
        ("ffn_norm.weight", ("feed_forward.w1", "feed_forward.w3")),
    ):
        for reader in readers:
            folded[f"{reader}.weight"] = layer[f"{reader}.weight"] * layer[norm]
        folded[norm] = torch.ones_like(layer[norm])
    return folded


def my_gemma_norm(x, weight, eps):
    wide = x.float()
    normed = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return (normed * (1 + weight.float())).bfloat16()


@pytest.mark.parametrize("checker, answer", [
    (check.n_parameters, my_n_parameters), (check.read_row, my_read_row),
    (check.layer_norm, my_layer_norm), (check.fold, my_fold), (check.gemma_norm, my_gemma_norm),
])  # fmt: skip
def test_the_right_answer_is_right_and_an_empty_one_is_not(capsys, checker, answer):
    assert said(capsys, checker, answer).startswith("Right: ")
    assert "returned None" in said(capsys, checker, lambda *case: None)


def off_by(change):
    """my_n_parameters, and `change` of the sizes on top."""
    return lambda *sizes: my_n_parameters(*sizes) + change(*sizes)


@pytest.mark.parametrize("count, words", [
    (off_by(lambda V, L, D, N, K, H, F: -V * D), "output matrix is missing"),
    (off_by(lambda V, L, D, N, K, H, F: -2 * V * D), "the two tables are missing"),
    (lambda V, L, D, N, K, H, F: my_n_parameters(V, L, D, N, N, H, F), "not N: [K*H, D]"),
    (lambda V, L, D, N, K, H, F: my_n_parameters(V, L, D, N, 1, H, F), "one head here"),
    (off_by(lambda V, L, D, N, K, H, F: -L * D * K * H), "one of wk and wv is missing"),
    (off_by(lambda V, L, D, N, K, H, F: -L * D * D), "wo is missing"),
    (off_by(lambda V, L, D, N, K, H, F: -L * D * F), "three matrices"),
    (off_by(lambda V, L, D, N, K, H, F: -L * D), "two norms"),
    (off_by(lambda V, L, D, N, K, H, F: -2 * L * D), "norms in the layers are missing"),
    (off_by(lambda V, L, D, N, K, H, F: -D), "the last norm is missing"),
    (off_by(lambda V, L, D, N, K, H, F: -(2 * L + 1) * D), "all norms are missing"),
    (off_by(lambda V, L, D, *sizes: -V * D - D), "what stands behind the layers"),
    (off_by(lambda V, L, D, *sizes: (2 * L + 1) * D), "and no bias"),
    (lambda V, L, *sizes: my_n_parameters(V, 1, *sizes), "only one layer"),
    (off_by(lambda V, L, D, *sizes: 2 * (L - 1) * V * D), "tables are counted once a layer"),
    (off_by(lambda V, L, D, *sizes: (L - 1) * D), "the last norm is counted once a layer"),
    (lambda *sizes: 2 * my_n_parameters(*sizes), "these are bytes"),
])  # fmt: skip
def test_mistakes_in_counting_parameters(capsys, count, words):
    assert words in said(capsys, check.n_parameters, count)


def unpacked(row, form="<f", before=b"\0\0", after=b""):
    pairs = (row[i : i + 2] for i in range(0, len(row), 2))
    return [struct.unpack(form, before + pair + after)[0] for pair in pairs]


def of(raw, D, id):
    return raw[2 * D * id : 2 * D * (id + 1)]


@pytest.mark.parametrize("read, words", [
    (lambda raw, D, id: unpacked(raw[D * id : D * id + 2 * D]), "counted in bytes"),
    (lambda raw, D, id: list(struct.unpack(f"<{D}e", of(raw, D, id))), "read as float16"),
    (lambda raw, D, id: unpacked(of(raw, D, id), before=b"", after=b"\0\0"), "behind the pair"),
    (lambda raw, D, id: unpacked(of(raw, D, id), form=">f", before=b"", after=b"\0\0"),
     "are swapped"),
    (lambda raw, D, id: list(struct.unpack(f"<{D}H", of(raw, D, id))), "as whole numbers"),
    (lambda raw, D, id: unpacked(of(raw, D, id - 1)), "the row before"),
    (lambda raw, D, id: unpacked(of(raw, D, id + 1)), "the row after"),
    (lambda raw, D, id: [row[id] for row in
                         (unpacked(of(raw, D, v)) for v in range(len(raw) // (2 * D)))],
     "this is the column"),
    (lambda raw, D, id: unpacked(of(raw, D, id))[: (D + 1) // 2], "stop after D bytes"),
    (lambda raw, D, id: unpacked(raw), "the whole table"),
    (lambda raw, D, id: unpacked(of(raw, D, id))[1:], "bytes, 5, 3 the result has 4 entries"),
])  # fmt: skip
def test_mistakes_in_reading_a_row(capsys, read, words):
    assert words in said(capsys, check.read_row, read)


def test_a_row_may_be_given_as_a_tensor_an_array_or_a_tuple(capsys):
    for kind in (torch.tensor, numpy.array, tuple):
        answer = lambda *case, kind=kind: kind(my_read_row(*case))  # noqa: E731
        assert said(capsys, check.read_row, answer).startswith("Right")


def size(x, eps, dim=-1):
    return (x.pow(2).mean(dim, keepdim=True) + eps).sqrt()


def centre(x, dim=-1):
    return x - x.mean(dim, keepdim=True)


@pytest.mark.parametrize("norm, words", [
    (lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), "this is RMSNorm"),
    (lambda x, w, eps: centre(x) / size(x, eps) * w, "before subtracting the mean"),
    (lambda x, w, eps: centre(x) * w, "nothing is divided"),
    (lambda x, w, eps: centre(x) / size(centre(x), eps), "weight is missing"),
    (lambda x, w, eps: centre(x) / size(centre(x), 0) * w, "eps is missing"),
    (lambda x, w, eps: centre(x) / (x.std(-1, correction=0, keepdim=True) + eps) * w,
     "eps is added to the root"),
    (lambda x, w, eps: centre(x) / (x.var(-1, correction=0, keepdim=True) + eps) * w,
     "Take its root"),
    (lambda x, w, eps: centre(x) / (x.var(-1, keepdim=True) + eps).sqrt() * w, "D - 1"),
    (lambda x, w, eps: centre(x) / (centre(x).pow(2).sum(-1, keepdim=True) + eps).sqrt() * w,
     "the sum of the squares"),
    (lambda x, w, eps: centre(x, 0) / size(centre(x, 0), eps, 0) * w, "each column has mean 0"),
    (lambda x, w, eps: F.layer_norm(x, x.shape, None, None, eps) * w, "for all rows"),
    (lambda x, w, eps: (x - x.mean(-1)) / (x.var(-1, correction=0) + eps).sqrt() * w,
     "keepdim=True"),
    (lambda x, w, eps: F.layer_norm(x * w, w.shape, None, None, eps), "the weight comes first"),
])  # fmt: skip
def test_mistakes_in_layer_norm(capsys, norm, words):
    assert words in said(capsys, check.layer_norm, norm)


ATTENTION, FFN = ("wq", "wk", "wv"), ("w1", "w3")


def folded(layer, attention=ATTENTION, ffn=FFN, ones=(True, True), scale=torch.mul):
    made = dict(layer)
    for half, norm, names, one in (
        ("attention", "attention_norm", attention, ones[0]),
        ("feed_forward", "ffn_norm", ffn, ones[1]),
    ):
        g = layer[f"{norm}.weight"]
        for name in names:
            key = f"{half}.{name}.weight"
            made[key] = scale(layer[key], g)
        if one:
            made[f"{norm}.weight"] = torch.ones_like(g)
    return made


def exchanged(layer):
    other = layer | {
        "attention_norm.weight": layer["ffn_norm.weight"],
        "ffn_norm.weight": layer["attention_norm.weight"],
    }
    return folded(other)


@pytest.mark.parametrize("answer, words", [
    (lambda layer: layer, "nothing is changed"),
    (lambda layer: folded(layer, ones=(False, False)), "these act twice"),
    (lambda layer: folded(layer, (), ()), "their weights are lost"),
    (lambda layer: folded(layer, ("wq", "wk", "wv", "wo")), "wo is scaled as well"),
    (exchanged, "the two norms are exchanged"),
    (lambda layer: folded(layer, ("wq",)), "wq alone"),
    (lambda layer: folded(layer, ("wq", "wk")), "wv is left out"),
    (lambda layer: folded(layer, ffn=("w1",)), "w3 is left out"),
    (lambda layer: folded(layer, ffn=(), ones=(True, False)), "the feed-forward's norm is left"),
    (lambda layer: folded(layer, (), ones=(False, True)), "attention's norm is left"),
    (lambda layer: folded(layer, scale=torch.div), "divided by the weights"),
    (lambda layer: folded(layer, scale=lambda w, g: w * g[:, None]), "Did you scale rows"),
    (lambda layer: folded(layer, ffn=("w1", "w3", "w2")), "a matrix that does not read"),
    (lambda layer: folded(layer, scale=lambda w, g: torch.diag(g) @ w), "Did you scale rows"),
    (lambda layer: {n: w for n, w in folded(layer).items() if "norm" not in n},
     "same nine names; attention_norm.weight is missing, ffn_norm.weight is missing."),
    (lambda layer: folded(layer) | {"wq": 1}, "'wq' is not one of them"),
    (lambda layer: list(folded(layer).values()), "of type list, expected a dictionary"),
    (lambda layer: layer.update(folded(layer)) or layer, "it changes its arguments"),
    (lambda layer: [folded(layer), layer.pop("ffn_norm.weight")][0], "out of its argument"),
    (lambda layer: folded(layer, scale=torch.add), "for a layer with D = 6 'attention.wq.weight'"),
    (lambda layer: layer["layers.0.attention.wq.weight"], "KeyError"),
])  # fmt: skip
def test_mistakes_in_folding_the_norms(capsys, answer, words):
    told = said(capsys, check.fold, answer)
    assert told.startswith("Not yet: ") and words in told


def unit(x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("norm, words", [
    (lambda x, w, eps: unit(x.float(), eps) * (1 + w.float()), "the result is float32"),
    (rms_norm, "this is Llama's norm"),
    (lambda x, w, eps: (unit(x.float(), eps) * w.float()).bfloat16(), "the factor is the weight"),
    (lambda x, w, eps: unit(x.float(), eps).bfloat16() * (1 + w), "this is Llama's order"),
    (lambda x, w, eps: (unit(x.float(), eps).bfloat16() * (1 + w.float())).bfloat16(),
     "the row is back in bfloat16"),
    (lambda x, w, eps: (unit(x.float(), eps) * (1 + w)).bfloat16(), "too few digits"),
    (lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (1 + w),
     "all of it is in bfloat16"),
    (lambda x, w, eps: (x.float() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
                        * (1 + w.float())).bfloat16(), "mean of the squares is taken in bfloat16"),
    (lambda x, w, eps: (unit(x.float(), 0) * (1 + w.float())).bfloat16(), "eps is missing"),
    (lambda x, w, eps: (x.float() / (x.float().pow(2).mean(-1) + eps).sqrt()).bfloat16(),
     "keepdim=True"),
])  # fmt: skip
def test_mistakes_in_gemmas_norm(capsys, norm, words):
    assert words in said(capsys, check.gemma_norm, norm)
