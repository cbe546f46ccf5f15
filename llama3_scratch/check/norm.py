"""The exercises of notebook 02: counting, reading and normalising what a checkpoint holds."""

import copy
import struct

import torch
import torch.nn.functional as F

from llama3_scratch.check.frame import examine
from llama3_scratch.config import PRESETS
from llama3_scratch.model import rms_norm


def _drawn(seed, *shapes):
    """Tensors from a seed, the same on every machine, on torch's default device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    return [tensor.to(torch.get_default_device()) for tensor in drawn]


def _misfit(answer, case, message):
    """Whether `answer` joins tensors whose shapes do not fit; if so the message is printed."""
    try:
        answer(*copy.deepcopy(case))
    except RuntimeError as error:
        if "size of tensor" in str(error) or "cannot be multiplied" in str(error):
            print(f"Not yet: {message}")
            return True
    except Exception:  # `examine` tells it
        pass
    return False


NOT_KEPT = (
    "two shapes do not fit. A mean has one dimension less than x; with keepdim=True the last one "
    "stays, with length 1, and each row gets its own number."
)


# --- 2.1: counting parameters ---------------------------------------------------------------------

SIZES = [  # V, L, D, N, K, H, F; the first two so small that every norm shows
    (11, 2, 12, 3, 1, 4, 7), (13, 3, 24, 6, 2, 4, 9),
    tuple(PRESETS["Llama-3-8B"].sizes[letter] for letter in "VLDNKHF"),
]  # fmt: skip


def _count(V, L, D, N, K, H, F, tables=2, kv=None, wo=1, ffn=3, norms=2, last=1):
    kv = 2 * K * H * D if kv is None else kv
    return tables * V * D + L * ((1 + wo) * N * H * D + kv + ffn * F * D + norms * D) + last * D


def n_parameters(answer):
    """How many numbers a Llama 3 with these sizes has: (V, L, D, N, K, H, F) -> int."""

    def with_(**parts):
        return lambda *sizes: _count(*sizes, **parts)

    mistakes = {
        "the output matrix is missing. In Llama 3 8B it is a table of its own, [V, D] once more.":
            with_(tables=1),
        "the two tables are missing: the embedding and the output matrix, [V, D] each.":
            with_(tables=0),
        "wk and wv are as large as wq here. They have K heads, not N: [K*H, D].":
            lambda V, L, D, N, K, H, F: _count(V, L, D, N, K, H, F, kv=2 * N * H * D),
        "wk and wv have one head here. They have K: [K*H, D].":
            lambda V, L, D, N, K, H, F: _count(V, L, D, N, K, H, F, kv=2 * H * D),
        "one of wk and wv is missing.":
            lambda V, L, D, N, K, H, F: _count(V, L, D, N, K, H, F, kv=K * H * D),
        "wo is missing: attention has four matrices.": with_(wo=0),
        "the feed-forward has three matrices, w1, w3 and w2; here two are counted.": with_(ffn=2),
        "a layer has two norms, one before each half; here it has one.": with_(norms=1),
        "the norms in the layers are missing: two of D numbers each in every layer.":
            with_(norms=0),
        "the last norm is missing, `norm.weight`, after all layers.": with_(last=0),
        "all norms are missing: two in every layer, and one after the last.":
            with_(norms=0, last=0),
        "what stands behind the layers is missing: the last norm, [D], and the output matrix, "
        "[V, D].": with_(tables=1, last=0),
        "each norm has 2*D numbers here. An RMSNorm has D, one for each column, and no bias.":
            with_(norms=4, last=2),
        "only one layer is counted. There are L.":
            lambda V, L, *sizes: _count(V, 1, *sizes),
        "the tables are counted once a layer. They stand outside the layers.":
            lambda V, L, *sizes: _count(V, L, *sizes, tables=2 * L),
        "the last norm is counted once a layer. There is one, after all layers.":
            lambda V, L, *sizes: _count(V, L, *sizes, last=L),
        "these are bytes in bfloat16. Count the numbers.": lambda *sizes: 2 * _count(*sizes),
    }  # fmt: skip
    examine(answer, _count, SIZES, mistakes)


# --- 2.2: one row from raw bytes ------------------------------------------------------------------


class _Bytes(bytes):
    def __repr__(self):  # how a message names them
        return f"{len(self)} bytes"


def _numbers(raw, start, D, form="<f", before=b"\0\0", after=b"", step=1):
    pairs = (raw[i : i + 2][::step] for i in range(start, start + 2 * D, 2))
    return [struct.unpack(form, before + pair + after)[0] for pair in pairs]


def read_row(answer):
    """Row `id` of a bfloat16 table [V, D] from its bytes: (raw, D, id) -> a list of D floats."""

    def listed(raw, D, id):
        row = answer(raw, D, id)
        return row.tolist() if hasattr(row, "tolist") else row  # a tensor, an array

    def right(raw, D, id):
        return _numbers(raw, 2 * id * D, D)

    def column(raw, D, id):
        return [_numbers(raw, start + 2 * id, 1)[0] for start in range(0, len(raw), 2 * D)]

    mistakes = {
        "you start at number id*D, but counted in bytes. A number has two of them.":
            lambda raw, D, id: _numbers(raw, id * D, D),
        "these are two bytes read as float16. bfloat16 has the exponent of float32: it is the "
        "upper half of one.": lambda raw, D, id:
            _numbers(raw, 2 * id * D, D, form="<e", before=b""),
        "the two zero bytes stand behind the pair. The file is little-endian, the lowest byte "
        "first, so what float32 has in addition stands in front.": lambda raw, D, id:
            _numbers(raw, 2 * id * D, D, before=b"", after=b"\0\0"),
        "the two bytes of each number are swapped: the file has the lower one first.":
            lambda raw, D, id: _numbers(raw, 2 * id * D, D, step=-1),
        "these are the bit patterns as whole numbers. Read them as floats.":
            lambda raw, D, id: _numbers(raw, 2 * id * D, D, form="<H", before=b""),
        "this is the row before. Ids count from 0, so row `id` starts after `id` others.":
            lambda raw, D, id: right(raw, D, id - 1),
        "this is the row after. Ids count from 0, so row `id` starts after `id` others.":
            lambda raw, D, id: right(raw, D, id + 1),
        "you stop after D bytes. A row has D numbers, of two bytes each.":
            lambda raw, D, id: right(raw, D, id)[: (D + 1) // 2],
        "this is the whole table. Return one row of it, row `id`.":
            lambda raw, D, id: _numbers(raw, 0, len(raw) // 2),
        "this is the column. A token's numbers stand one after the other, as a row.": column,
    }  # fmt: skip
    cases = []
    for seed, V, D, id in ((1, 7, 5, 3), (2, 6, 8, 1), (3, 9, 6, 4)):
        (table,) = _drawn(seed, (V, D))
        raw = _Bytes(table.bfloat16().view(torch.uint8).flatten().tolist())
        cases.append((raw, D, id))
    examine(listed, right, cases, mistakes)


# --- 2.3: LayerNorm -------------------------------------------------------------------------------


def layer_norm(answer):
    """LayerNorm, without a bias: (x [..., D], weight [D], eps) -> [..., D].

    Each row gets mean 0 and mean square 1, then each column its weight.
    """

    def right(x, weight, eps):
        return F.layer_norm(x, weight.shape, weight, None, eps)

    def centred(x):
        return x - x.mean(-1, keepdim=True)

    def over(square, x, eps):
        return x / (square + eps).sqrt()

    def mean_square(x):
        return x.pow(2).mean(-1, keepdim=True)

    mistakes = {
        "this is RMSNorm. LayerNorm subtracts the row's mean as well.": rms_norm,
        "rows of your result have mean 0, but their size is not 1: did you take the mean of the "
        "squares before subtracting the mean?":
            lambda x, weight, eps: over(mean_square(x), centred(x), eps) * weight,
        "the mean is subtracted, but nothing is divided.":
            lambda x, weight, eps: centred(x) * weight,
        "the weight is missing: at the end each column is multiplied by its own.":
            lambda x, weight, eps: right(x, torch.ones_like(weight), eps),
        "eps is missing, or so small that it does nothing: use the argument.":
            lambda x, weight, eps: right(x, weight, 0.0),
        "eps is added to the root. It belongs inside, to the mean of the squares.":
            lambda x, weight, eps:
                centred(x) / (mean_square(centred(x)).sqrt() + eps) * weight,
        "you divide by the mean of the squares. Take its root.":
            lambda x, weight, eps: centred(x) / (mean_square(centred(x)) + eps) * weight,
        "the squares are divided by D - 1, as `var` and `std` do on their own. LayerNorm divides "
        "by D: a mean, or `correction=0`.":
            lambda x, weight, eps: over(x.var(-1, keepdim=True), centred(x), eps) * weight,
        "the sum of the squares stands where their mean belongs: divide by D.":
            lambda x, weight, eps:
                over(centred(x).pow(2).sum(-1, keepdim=True), centred(x), eps) * weight,
        "each column has mean 0. The mean is taken along the last dimension, inside a row: each "
        "token alone.": lambda x, weight, eps: _by_columns(x, eps) * weight,
        "one mean and one size for all rows. Each row has its own: dim -1, keepdim=True.":
            lambda x, weight, eps:
                (x - x.mean()) / ((x - x.mean()).pow(2).mean() + eps).sqrt() * weight,
        "the weight comes first here. It is multiplied at the end, when the row has size 1.":
            lambda x, weight, eps: right(x * weight, torch.ones_like(weight), eps),
    }  # fmt: skip
    cases = []
    for seed, shape, eps in ((1, (4, 6), 0.1), (2, (3, 7), 0.02), (3, (2, 3, 5), 0.3)):
        x, weight = _drawn(seed, shape, shape[-1:])
        cases.append((1.3 * x + 0.8, 1 + 0.4 * weight, eps))
    if not _misfit(answer, cases[0], NOT_KEPT):
        examine(answer, right, cases, mistakes)


def _by_columns(x, eps):
    centred = x - x.mean(0, keepdim=True)
    return centred / (centred.pow(2).mean(0, keepdim=True) + eps).sqrt()


# --- 2.4: a layer whose norms have no weights -----------------------------------------------------

READS = {  # which norm's result each matrix of a layer reads
    "attention_norm.weight": ("attention.wq", "attention.wk", "attention.wv"),
    "ffn_norm.weight": ("feed_forward.w1", "feed_forward.w3"),
}


class _Layer(dict):
    def __repr__(self):  # how a message names it
        return f"a layer with D = {len(self['ffn_norm.weight'])}"


def _layer(seed, D, kv, width):
    """One layer's weights by their names inside a layer; the three sizes differ."""
    shapes = {
        "attention.wq.weight": (D, D), "attention.wk.weight": (kv, D),
        "attention.wv.weight": (kv, D), "attention.wo.weight": (D, D),
        "feed_forward.w1.weight": (width, D), "feed_forward.w3.weight": (width, D),
        "feed_forward.w2.weight": (D, width),
        "attention_norm.weight": (D,), "ffn_norm.weight": (D,),
    }  # fmt: skip
    layer = dict(zip(shapes, _drawn(seed, *shapes.values()), strict=True))
    return _Layer({name: 1 + 0.3 * w if w.dim() == 1 else w for name, w in layer.items()})


def _fold(layer, reads=READS, by=lambda matrix, g: matrix * g, ones=True):
    folded = dict(layer)
    for norm, names in reads.items():
        for name in names:
            folded[f"{name}.weight"] = by(folded[f"{name}.weight"], layer[norm])
        if ones:
            folded[norm] = torch.ones_like(layer[norm])
    return folded


def fold(answer):
    """One layer's weights -> the same layer with norms of 1: their weights are in its matrices.

    {name inside a layer: tensor} -> {name: tensor}, all nine of them.
    """

    def only(**reads):
        return lambda layer: _fold(layer, {f"{name}.weight": m for name, m in reads.items()})

    attention, ffn = READS.values()
    swapped = dict(zip(READS, (ffn, attention), strict=True))
    mistakes = {
        "nothing is changed. Multiply the norms' weights into the matrices that read them.":
            lambda layer: layer,
        "the norms still have their weights, so these act twice. Set both to ones.":
            lambda layer: _fold(layer, ones=False),
        "the norms are 1, but their weights are lost. Multiply them into the matrices.":
            lambda layer: _fold(layer, dict.fromkeys(READS, ())),
        "wo is scaled as well. It reads what the heads made, not the norm's result.":
            lambda layer: _fold(layer, READS | {
                "attention_norm.weight": (*attention, "attention.wo")}),
        "the two norms are exchanged: attention_norm stands before wq, wk and wv, ffn_norm before "
        "w1 and w3.": lambda layer: _fold(layer, swapped),
        "wq alone reads attention_norm here. wk and wv read it too.":
            only(attention_norm=("attention.wq",), ffn_norm=ffn),
        "wv is left out: values are made from the norm's result as well.":
            only(attention_norm=attention[:2], ffn_norm=ffn),
        "w3 is left out. It reads the same as w1.":
            only(attention_norm=attention, ffn_norm=ffn[:1]),
        "the feed-forward's norm is left out: ffn_norm stands before w1 and w3.":
            only(attention_norm=attention),
        "attention's norm is left out: attention_norm stands before wq, wk and wv.":
            only(ffn_norm=ffn),
        "the matrices are divided by the weights. What the norm multiplied before, the matrix has "
        "to multiply now.": lambda layer: _fold(layer, by=lambda matrix, g: matrix / g),
    }  # fmt: skip
    cases = [(_layer(*sizes),) for sizes in ((1, 6, 2, 11), (2, 8, 4, 5), (3, 10, 5, 13))]
    if not (_misfit(answer, cases[0], NOT_COLUMNS) or _other_names(answer, cases[0])):
        examine(answer, _fold, cases, mistakes)


NOT_COLUMNS = (
    "two shapes do not fit. A norm's weight has D numbers, one for each column of the matrices "
    "that read it. Did you scale rows, or a matrix that does not read the norm's result?"
)


def _other_names(answer, case):
    """Whether the result is no dictionary with the layer's nine names; if so, it is printed."""
    (layer,) = copy.deepcopy(case)
    names = set(layer)
    try:
        found = answer(layer)
    except Exception:  # `examine` tells it
        return False
    if isinstance(found, dict) and found.keys() != names:
        missing, odd = sorted(names - found.keys()), sorted(found.keys() - names, key=str)
        faults = [f"{name} is missing" for name in missing]
        faults += [f"{name!r:.40} is not one of them" for name in odd]
        print(f"Not yet: expected the same nine names; {', '.join(faults)}.")
        return True
    if found is not None and not isinstance(found, dict):
        kind = type(found).__name__
        print(f"Not yet: the result is of type {kind}, expected a dictionary, {{name: tensor}}.")
        return True
    if layer.keys() != names:
        print("Not yet: it takes names out of its argument. Make a new dictionary: `dict(layer)`.")
        return True
    return False


# --- 2.5: another model's norm --------------------------------------------------------------------


def _unit(x, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def gemma_norm(answer):
    """Gemma's RMSNorm: (x [T, D], weight [D], both bfloat16, eps) -> [T, D], bfloat16.

    All in float32, the factor is 1 + weight, and one cast stands at the end.
    """

    def right(x, weight, eps):
        return (_unit(x.float(), eps) * (1 + weight.float())).type_as(x)

    mistakes = {
        "the result is float32: cast it back to x's type at the end.":
            lambda x, weight, eps: _unit(x.float(), eps) * (1 + weight.float()),
        "this is Llama's norm, with the weight itself as the factor. Gemma's is 1 + weight.":
            rms_norm,
        "the factor is the weight itself. Gemma's is 1 + weight.":
            lambda x, weight, eps: (_unit(x.float(), eps) * weight.float()).type_as(x),
        "this is Llama's order: back to bfloat16 before the factor. Gemma multiplies in float32 "
        "and casts once, at the end.":
            lambda x, weight, eps: _unit(x.float(), eps).type_as(x) * (1 + weight),
        "the row is back in bfloat16 before the factor. Gemma casts once, at the end.":
            lambda x, weight, eps:
                (_unit(x.float(), eps).type_as(x).float() * (1 + weight.float())).type_as(x),
        "1 + weight is added up in bfloat16, which has too few digits for it: `weight.float()` "
        "first.":
            lambda x, weight, eps: (_unit(x.float(), eps) * (1 + weight).float()).type_as(x),
        "all of it is in bfloat16: the size of every row is a little off. `x.float()` first.":
            lambda x, weight, eps: _unit(x, eps) * (1 + weight),
        "the mean of the squares is taken in bfloat16: the size of every row is a little off. "
        "`x.float()` before the squares.": lambda x, weight, eps:
            (x.float() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps).float()
             * (1 + weight.float())).type_as(x),
        "eps is missing, or so small that it does nothing: use the argument.":
            lambda x, weight, eps: right(x, weight, 0.0),
    }  # fmt: skip
    cases = []
    for seed, T, D, eps in ((1, 5, 24, 1e-6), (2, 7, 18, 1e-6), (3, 4, 30, 1e-3)):
        x, weight = _drawn(seed, (T, D), (D,))
        cases.append(((1.7 * x).bfloat16(), (0.4 * weight).bfloat16(), eps))
    if not _misfit(answer, cases[0], NOT_KEPT):
        examine(answer, right, cases, mistakes)
