"""Answers to the exercises of notebook 02, apart from the checkers' own."""

import numpy as np
import torch
import torch.nn.functional as functional


def rms_norm_with_numpy(x, weight, eps):
    wide = x.double().numpy()
    unit = wide / np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + eps)
    return torch.from_numpy(unit).to(x.dtype) * weight


def rms_norm_row_by_row(x, weight, eps):
    rows = x.float().reshape(-1, x.shape[-1])
    divided = [row / (row @ row / len(row) + eps) ** 0.5 for row in rows]
    return torch.stack(divided).reshape(x.shape).to(x.dtype) * weight


def layer_norm_with_numpy(x, weight, eps):
    x, weight = x.numpy().astype(np.float64), weight.numpy()
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight


def centred(x):
    return x - x.mean(-1, keepdim=True)


def folded(layer, attention=("wq", "wk", "wv"), ffn=("w1", "w3"), scale=torch.mul):
    readers = {f"attention.{name}.weight": "attention_norm.weight" for name in attention}
    readers |= {f"feed_forward.{name}.weight": "ffn_norm.weight" for name in ffn}
    made = {n: scale(w, layer[readers[n]]) if n in readers else w for n, w in layer.items()}
    return {n: torch.ones_like(w) if "norm" in n else w for n, w in made.items()}


def folded_by_matrices(layer):
    g, h = (layer[f"{name}_norm.weight"].double().diag() for name in ("attention", "ffn"))
    products = {n: w.double() @ (g if "attention." in n else h) for n, w in layer.items()
                if n.split(".")[-2] in ("wq", "wk", "wv", "w1", "w3")}  # fmt: skip
    ones = {n: torch.ones(len(g)) for n in ("attention_norm.weight", "ffn_norm.weight")}
    return {**layer, **products, **ones}


def gemma(x, weight, eps):
    wide, weight = x.double(), weight.double()
    size = (wide.square().mean(1, keepdim=True) + eps) ** 0.5
    return (wide / size * (1 + weight)).bfloat16()


RIGHT = {
    "e02_rmsnorm.rms_norm": [rms_norm_with_numpy, rms_norm_row_by_row],
    "e02_rmsnorm.layer_norm": [
        layer_norm_with_numpy,
        lambda x, w, eps: w * functional.rms_norm(centred(x), w.shape, None, eps),
    ],
    "e02_rmsnorm.fold": [folded, folded_by_matrices],
    "e02_rmsnorm.gemma_norm": [
        gemma,
        lambda x, w, eps: functional.rms_norm(x.float(), w.shape, 1 + w.float(), eps).bfloat16(),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e02_rmsnorm.rms_norm": [
        (lambda x, w, eps: functional.rms_norm(x.float(), w.shape, None, 1e-5).to(x.dtype) * w,
         "a small number is typed in"),
        (lambda x, w, eps: w * (x * ((x.float() ** 2).mean(-1, keepdim=True) + eps).rsqrt().to(x)),
         "The order is"),
        #
        (lambda x, w, eps: w * x / ((x**2).mean() + eps) ** 0.5, "do not have mean square 1"),
    ],
    "e02_rmsnorm.layer_norm": [
        (lambda x, w, eps: functional.layer_norm(x, w.shape, w, None, 1e-5), "eps is missing"),
        #
        (lambda x, w, eps: centred(x) / x.std(-1, keepdim=True) * w, "do not have mean square 1"),
        (lambda x, w, eps: (x - x.mean()) / (x.std() + eps) * w, "do not have mean 0"),
    ],
    "e02_rmsnorm.fold": [
        (lambda layer: folded(layer, scale=lambda w, g: g.diag() @ w), "Did you scale rows"),
        (lambda layer: folded(layer, scale=torch.add), "wq, wk and wv do not compute the same"),
        #
        (lambda layer: folded(layer, ("wq", "wk", "wv", "wo"), ()), "wo or w2 is changed"),
    ],
    "e02_rmsnorm.gemma_norm": [
        (lambda x, w, eps: gemma(x, w, 1e-5), "eps is missing"),
        #
        (lambda x, w, eps: (1 + w) * (x / x.norm(dim=-1, keepdim=True)), "rows do not have mean"),
        (lambda x, w, eps: gemma(x, w * 0, eps) * (1 + w.abs()), "single rounding explains"),
    ],
}  # fmt: skip
