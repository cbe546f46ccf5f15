"""A whole model: what its matrices are multiplied with, one layer after another, and outliers.

The methods of `rounding` look at one matrix and its inputs. `collect` gathers the inputs of all,
`sequential` rounds all. `smooth` and `llm_int8` are about a few columns of the inputs that are much
larger than the others.
"""

import torch

from llama3_scratch.errors import require
from llama3_scratch.model import block, causal_mask, layer, linear, rotations_at
from llama3_scratch.quantize.packed import Packed, absmax
from llama3_scratch.quantize.rounding import Rounded, dequantize, hessian
from llama3_scratch.watch import watch

GATHER = {  # what is kept of a matrix's inputs X [T, I], and how that of two texts is joined
    "hessian": (hessian, torch.add),  # [I, I]
    "rows": (lambda X: X, lambda some, more: torch.cat([some, more])),  # [all T, I]
    "largest": (lambda X: X.abs().amax(0), torch.maximum),  # [I]: magnitudes
}
READERS = {  # a layer's norm: the matrices that read what it returns
    "attention_norm.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    "ffn_norm.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
SMALLEST = 1e-5  # of the magnitudes that smooth divides by, as in the published code


def collect(weights, config, texts, what="hessian"):
    """A model, texts -> a generator of (name of a matrix, what its inputs were), layer by layer.

    texts: tensors of ids [T], one pass through the model each. what: "hessian", the sum over all
    texts; "rows", the inputs themselves; "largest", the largest magnitude in each column. Matrices
    that read the same inputs share one result. All L x 7 matrices within the layers are yielded,
    `dict(collect(...))` holds all results.

    Memory: the residual stream of all texts, and besides it one layer: its weights, its results,
    and what one text's pass through it computes. An 8B's layer has Hessians of 2.0 GB.
    """
    streams = _embedded(weights, texts, what)
    for i in range(config.n_layers):
        inside = layer(weights, i)
        for name, found in _inputs(inside, streams, config, what, advance=True).items():
            yield f"layers.{i}.{name}", found


def sequential(weights, config, texts, method, what="hessian"):
    """A model, texts, method -> {name of a matrix: what the method made of it}.

    method: (W [O, I] in float32, what `collect` gathers) -> a `Rounded`, a `Packed` or a matrix.
    The inputs of a layer are what the layers before it give once they are rounded, so that later
    layers make up for the errors of earlier ones; within a layer all matrices are rounded for the
    inputs that they have before any of them is (the default of gptq.py, IST-DASLab's code).
    Memory: as in `collect`, and the results.
    """
    streams = _embedded(weights, texts, what)
    made = {}
    for i in range(config.n_layers):
        inside = layer(weights, i)
        inputs = _inputs(inside, streams, config, what, advance=False)
        for name in list(inputs):
            result = method(inside[name].float(), inputs.pop(name))
            inside[name] = _matrix(result).to(inside[name].dtype)
            made[f"layers.{i}.{name}"] = result
        for n, stream in enumerate(streams):
            streams[n] = _through(inside, stream, config)
    return made


def _embedded(weights, texts, what):
    """Return each text's residual stream before the first layer."""
    require(what in GATHER, f"what is {what!r}: expected one of {', '.join(GATHER)}.")
    table = weights["tok_embeddings.weight"]
    ids = [torch.as_tensor(text, device=table.device) for text in texts]
    right = ids and all(text.dim() == 1 and len(text) for text in ids)
    require(right, "expected at least one text, and each as ids [T] with T of 1 or more.")
    return [table[text] for text in ids]


@torch.no_grad()
def _through(inside, stream, config):
    """A layer's weights, [T, D] -> [T, D]"""
    positions = torch.arange(len(stream), device=stream.device)
    rotations, mask = rotations_at(positions, config), causal_mask(positions, len(stream))
    return block(stream, inside, rotations, mask, config)


def _inputs(inside, streams, config, what, advance):
    """A layer's weights, streams -> {name of a matrix: what `GATHER` keeps of its inputs}.

    advance: replace each stream by the layer's result.
    """
    keep, join = GATHER[what]
    names = {id(weight): name for name, weight in inside.items()}
    owners, kept = {}, {}
    for n, stream in enumerate(streams):
        with watch(linear) as calls:
            result = _through(inside, stream, config)
        first = {}  # of the matrices that read the same x
        for call in calls:
            name, x = names[id(call["weight"])], call["x"]
            owners[name] = first.setdefault(id(x), name)
            if owners[name] == name:
                part = keep(x)
                kept[name] = join(kept[name], part) if name in kept else part
        if advance:
            streams[n] = result
    return {name: kept[owner] for name, owner in owners.items()}


def _matrix(result):
    if isinstance(result, Rounded):
        return dequantize(result)
    return result.dequantize() if isinstance(result, Packed) else result


def smooth(weights, activations, alpha=0.5):
    """Weights, what `collect` found -> weights of the same function, with smaller outliers.

    SmoothQuant: Xiao et al. 2022, arXiv:2211.10438. Column j of a norm's output is divided by s_j,
    in the norm's weight, and that column of the matrices that read it is multiplied by s_j, with
    s_j = max |X_j|^alpha / max |W_j|^(1 - alpha). (wo and w2 read no norm: they stay.)

    activations: {name of wq or w1: rows or largest magnitudes of its inputs}; a norm whose readers
    are not named stays. Returns a dictionary, in which what stays is not copied.
    """
    new = dict(weights)
    for name in weights:
        norm = next((norm for norm in READERS if name.endswith(norm)), "")
        readers = [name.removesuffix(norm) + reader for reader in READERS.get(norm, ())]
        if not readers or readers[0] not in activations:
            continue
        X = activations[readers[0]]
        in_x = X.float().reshape(-1, X.shape[-1]).abs().amax(0).clamp(min=SMALLEST)  # [D]
        in_w = torch.stack([weights[reader].float().abs().amax(0) for reader in readers]).amax(0)
        s = in_x**alpha / in_w.clamp(min=SMALLEST) ** (1 - alpha)  # [D]
        new[name] = (weights[name] / s).type_as(weights[name])
        for reader in readers:
            new[reader] = (weights[reader] * s).type_as(weights[reader])
    return new


def llm_int8(x, W, threshold=6.0):
    """[..., I], [O, I] -> [..., O]: x W^T, in 8 bits but for the columns of x with outliers.

    LLM.int8(): Dettmers et al. 2022, arXiv:2208.07339. A column of x in which any magnitude is at
    least `threshold` is an outlier: it meets its column of W as they are. The others are whole
    numbers up to 127, with a scale for each row of x (of its other columns) and of W (of all its
    columns), and their products are summed exactly. threshold 0 leaves no column to the whole
    numbers; infinity leaves all (W8A8). (bitsandbytes takes 0 for infinity, and the outliers'
    weights from their 8 bits.)
    """
    outliers = (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(0)  # [I]
    exact = x[..., outliers] @ W[:, outliers].T  # [..., O]
    x_codes, x_scales = absmax(x.float().masked_fill(outliers, 0))  # [..., I], [..., 1]
    W_codes, W_scales = absmax(W.float())  # [O, I], [O, 1]
    sums = x_codes.double() @ W_codes.double().T  # [..., O], whole numbers
    return exact + (sums * x_scales * W_scales[:, 0]).type_as(x)
