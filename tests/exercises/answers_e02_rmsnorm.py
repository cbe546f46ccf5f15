"""Answers to the exercises of notebook 02, written without a look at the checkers' own."""

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


def rms_norm_with_the_name_taken(x, weight, eps):
    x = x.float()
    return functional.rms_norm(x, weight.shape, None, eps).type_as(x) * weight


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
    "e02_rmsnorm.rms_norm": [
        rms_norm_with_numpy,
        rms_norm_row_by_row,
        lambda x, w, eps: functional.rms_norm(x.float(), w.shape, None, eps).to(x.dtype) * w,
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
    "e02_rmsnorm.rms_norm": [
        (rms_norm_with_the_name_taken, "the type that x had at the start"),
        (lambda x, w, eps: functional.rms_norm(x.float(), w.shape, w.float(), eps).to(x.dtype),
         "cast back first"),
        (lambda x, w, eps: functional.rms_norm(x.float(), w.shape, None, 1e-5).to(x.dtype) * w,
         "a small number is typed in"),
        (lambda x, w, eps: x / (x.float() ** 2).mean(-1) ** 0.5 * w, "keepdim=True"),
        (lambda x, w, eps: x / x.std(-1, keepdim=True) * w, "do not have mean square 1"),
        (lambda x, w, eps: (x.double() / x.double().norm(dim=-1, keepdim=True)).to(x.dtype) * w,
         "do not have mean square 1"),
        #
        (lambda x, w, eps: w * x / ((x**2).mean() + eps) ** 0.5, "do not have mean square 1"),
        (lambda x, w, eps: rms_norm_with_numpy(x, 1 + w, eps), "twice the weight"),
        (lambda x, w, eps: rms_norm_row_by_row(x, w, 1e-9).float() + eps, "expected"),
        (lambda x, w, eps: w * (x * ((x.float() ** 2).mean(-1, keepdim=True) + eps).rsqrt().to(x)),
         "The order is"),
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
        (lambda layer: folded(layer, scale=lambda w, g: torch.einsum("oi,o->oi", w, g)),
         "Did you scale rows"),
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
