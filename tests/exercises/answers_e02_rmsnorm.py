"""Answers to the exercises of notebook 02, written without a look at the checkers' own."""

import struct

import numpy as np
import torch
import torch.nn.functional as functional


def count(V, L, D, N, K, H, F, outside=2, norms=2, matrices=3):
    attention = sum(a * b for a, b in ((D, D), (D, K * H), (D, K * H), (D, D)))
    return sum(attention + matrices * F * D + norms * D for _ in range(L)) + outside * V * D + D


def floats(raw):
    pairs = (raw[i : i + 2] for i in range(0, len(raw), 2))
    return [struct.unpack("<f", bytes(2) + pair)[0] for pair in pairs]


def bits_by_hand(raw, D, id):
    row = []
    for i in range(2 * D * id, 2 * D * (id + 1), 2):
        word = raw[i] + 256 * raw[i + 1]
        sign, exponent, fraction = word >> 15, word >> 7 & 255, word & 127
        row.append((-1) ** sign * 2.0 ** (exponent - 127) * (1 + fraction / 128))
    return row


def with_pytorch(raw, D, id):
    return torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).view(-1, D)[id].tolist()


def with_numpy(raw, D, id):
    table = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
    return table.view(np.float32).reshape(-1, D)[id]


def layer_norm_with_numpy(x, weight, eps):
    x, weight = x.numpy().astype(np.float64), weight.numpy()
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight


def centred(x):
    return x - x.mean(-1, keepdim=True)


def layer_norm_in_place(x, weight, eps):
    x -= x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def folded(layer, attention=("wq", "wk", "wv"), ffn=("w1", "w3"), scale=torch.mul, one=1.0):
    readers = {f"attention.{name}.weight": "attention_norm.weight" for name in attention}
    readers |= {f"feed_forward.{name}.weight": "ffn_norm.weight" for name in ffn}
    made = {n: scale(w, layer[readers[n]]) if n in readers else w for n, w in layer.items()}
    return {n: torch.full_like(w, one) if "norm" in n else w for n, w in made.items()}


def folded_by_matrices(layer):
    g, h = (layer[f"{name}_norm.weight"].double().diag() for name in ("attention", "ffn"))
    products = {n: w.double() @ (g if "attention." in n else h) for n, w in layer.items()
                if n.split(".")[-2] in ("wq", "wk", "wv", "w1", "w3")}  # fmt: skip
    ones = {n: torch.ones(len(g)) for n in ("attention_norm.weight", "ffn_norm.weight")}
    return {**layer, **products, **ones}


def gemma(x, weight, eps, dtype=torch.float64):
    wide, weight = x.to(dtype), weight.to(dtype)
    size = (wide.square().mean(1, keepdim=True) + eps) ** 0.5
    return (wide / size * (1 + weight)).bfloat16()


RIGHT = {
    "e02_rmsnorm.n_parameters": [count, lambda V, L, D, N, K, H, F: D * (
        2 * V + 1 + L * (2 * D + 2 * D // (N // K) + 3 * F + 2))],
    "e02_rmsnorm.read_row": [
        with_numpy,
        lambda raw, D, id: tuple(floats(raw)[id * D : id * D + D]),
        lambda raw, D, id: [struct.unpack("<f", struct.pack("<I", word << 16))[0]
                            for word in struct.unpack_from(f"<{D}H", raw, 2 * D * id)],
    ],
    "e02_rmsnorm.layer_norm": [
        layer_norm_with_numpy,
        lambda x, w, eps: w * functional.rms_norm(centred(x), w.shape, None, eps),
        lambda x, w, eps: centred(x) / (x.var(-1, correction=0, keepdim=True) + eps) ** 0.5 * w,
    ],
    "e02_rmsnorm.fold": [folded, folded_by_matrices],
    "e02_rmsnorm.gemma_norm": [
        gemma,
        lambda x, w, eps: gemma(x, w, eps, torch.float32),
        lambda x, w, eps: functional.rms_norm(x.float(), w.shape, 1 + w.float(), eps).bfloat16(),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e02_rmsnorm.n_parameters": [
        (lambda V, *sizes: count(128256, *sizes), "outside the layers"),
        (lambda V, L, D, N, K, H, F: count(V, L, D, N, 8, H, F), "wk and wv are not counted"),
        #
        (lambda *sizes: count(*sizes, outside=1, norms=1), "outside the layers"),
        (lambda *sizes: count(*sizes, norms=1, matrices=2), "the feed-forward part"),
        (lambda V, L, D, N, K, H, F: count(V, L, D, N, N, H, F, norms=1), "wk and wv are not"),
        (lambda V, L, D, *rest: count(V, L, D, *rest, norms=0) - L * D * D, "or the norms of a"),
    ],
    "e02_rmsnorm.read_row": [
        (with_pytorch, "a way without PyTorch"),
        (bits_by_hand, "right except for 0"),
        (lambda raw, D, id: floats(raw[2 * D * id : 2 * D * (id + 1)])[1:], "row has D numbers"),
        (lambda raw, D, id: floats(raw[2 * D * id + 1 : 2 * D * (id + 1) + 1]), "not in the table"),
        #
        (lambda raw, D, id: struct.unpack_from(f"<{D}e", raw, D * id), "not in the table"),
        (lambda raw, D, id: floats(raw)[id : len(raw) // 2 : D][::-1], "row has D numbers"),
        (lambda raw, D, id: floats(raw)[id * D - 1 : id * D - 1 + D], "not those of row `id`"),
    ],
    "e02_rmsnorm.layer_norm": [
        (layer_norm_in_place, "it changes its arguments"),
        (lambda x, w, eps: (x - x.mean(-1)) / (x.var(-1) + eps) ** 0.5 * w, "keepdim=True"),
        (lambda x, w, eps: functional.layer_norm(x, w.shape, w, None, 1e-5), "eps is missing"),
        (lambda x, w, eps: functional.layer_norm(x, w.shape, 1 + w, None, eps), "twice the weight"),
        #
        (lambda x, w, eps: centred(x) / x.std(-1, keepdim=True) * w, "do not have mean square 1"),
        (lambda x, w, eps: (x - x.mean()) / (x.std() + eps) * w, "do not have mean 0"),
        (lambda x, w, eps: functional.layer_norm(x, w.shape, None, w, 1e-5), "twice the weight"),
    ],
    "e02_rmsnorm.fold": [
        (lambda layer: folded(layer, ffn=("w1", "w3", "w2")), "a matrix that does not read"),
        (lambda layer: folded(layer, scale=lambda w, g: g.diag() @ w), "Did you scale rows"),
        (lambda layer: {n: w for n, w in folded(layer).items() if "norm" not in n},
         "the key 'attention_norm.weight' is missing"),
        (lambda layer: folded(layer) | {"wq": 1}, "the key 'wq' is not expected"),
        (lambda layer: list(folded(layer).values()), "of type list, expected a dict"),
        (lambda layer: layer.update(folded(layer)) or layer, "it changes its arguments"),
        (lambda layer: folded(layer, scale=torch.add), "wq, wk and wv do not compute the same"),
        #
        (lambda layer: folded(layer, ("wq", "wk"), ("w1",)), "wq, wk and wv do not compute"),
        (lambda layer: folded(layer, scale=torch.div, one=0.0), "are not all ones"),
        (lambda layer: folded(layer, ("wq", "wk", "wv", "wo"), ()), "wo or w2 is changed"),
        (lambda layer: folded(folded(layer), (), ("w1",)) | {
            "feed_forward.w1.weight": layer["feed_forward.w1.weight"]}, "w1 and w3 do not compute"),
    ],
    "e02_rmsnorm.gemma_norm": [
        (lambda x, w, eps: x / (x.float() ** 2).mean(-1) ** 0.5 * (1 + w), "keepdim=True"),
        (lambda x, w, eps: gemma(x, w, 1e-5), "eps is missing"),
        #
        (lambda x, w, eps: (1 + w) * (x / x.norm(dim=-1, keepdim=True)), "rows do not have mean"),
        (lambda x, w, eps: gemma(x, w - 1, eps) + 1, "The factor is 1 + weight"),
        (lambda x, w, eps: gemma(x, w, 0) * (1 + w), "with a weight of 2"),
        (lambda x, w, eps: gemma(x, w * 0, 1e-6) * (1 + w), "in the wrong place"),
        (lambda x, w, eps: gemma(x, w * 0, eps) * (1 + w.abs()), "single rounding explains"),
    ],
}  # fmt: skip
