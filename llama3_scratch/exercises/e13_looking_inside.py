"""The exercises of notebook 13: the lens, contributions, an ablation, a patch, a control."""

import torch

from llama3_scratch.config import Config, weight_shapes
from llama3_scratch.exercises.frame import Exercise, answer_property, desk, drawn, of_each
from llama3_scratch.model import block, causal_mask, layer, linear, rms_norm, rotations_at

TINY = Config(4, 1, 2, 1, 5, 3, 0.05, 500000.0, 0.3)  # D, L, N, K, V
SMALL = Config(24, 3, 6, 2, 101, 7, 0.02, 500000.0, 1.3)  # all sizes differ from one another


def _weights(config, seed):
    shapes = weight_shapes(config)
    tensors = zip(shapes.items(), drawn(seed, *shapes.values()), strict=True)
    return {
        name: 1 + 0.3 * w if "norm" in name else w if "emb" in name else w / size[-1] ** 0.5
        for (name, size), w in tensors
    }


def _size(x, c):
    return (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()


def _direction(w, token, other):
    return w["norm.weight"] * (w["output.weight"][token] - w["output.weight"][other])


# --- The lens, and its frozen twin ----------------------------------------------------------------


def _lens_cases():
    cases = {}
    for seed, (config, stages) in enumerate(((TINY, 3), (SMALL, 4), (SMALL, 9)), start=1):
        (steps,) = drawn(seed, (stages, config.dim))
        streams = 0.4 * steps.cumsum(0) * torch.arange(1, stages + 1)[:, None]
        weights = {n: w for n, w in _weights(config, seed).items() if n[:5] in ("norm.", "outpu")}
        name = f"{stages} stages of size {config.dim}"
        cases[name] = streams, weights, 2 * seed, seed - 1, config
    return cases


def _read(own, frozen):
    """Both leads, each divided by a size: functions of (streams, config)."""

    def answer(x, w, token, other, c):
        lead = x @ _direction(w, token, other)
        return torch.stack([lead / size(x, c) for size in (own, frozen)])

    return answer


def _own(x, c):
    return _size(x, c)[:, 0]


def _last(x, c):
    return _size(x[-1:], c)[:, 0]


def _ends_agree(found, *case):
    return bool((found[0, -1] - found[1, -1]).abs() <= 1e-4 * found.abs().max())


lens = Exercise(
    "streams [M, D], one position's row at M stages, the last one after all layers; all weights, "
    "two ids, Config -> [2, M]: by how much the logit of `token` exceeds that of `other` at each "
    "stage, first with each stage divided by its own size, then with all stages divided by the "
    "size of the last.",
    right=_read(_own, _last),
    cases=_lens_cases,
    hints=(
        "Both need the direction norm.weight times the difference of two rows of the output "
        "matrix. A stage's lead is its product with this direction, divided by a size.",
        "`rms_norm` divides each row by its own size. For the second row compute the size of the "
        "last stage once: the root of its mean square plus eps.",
    ),
    mistakes=[
        (_read(_own, _own),
         "both rows are the lens. The second divides all stages by one size, that of the last."),
        (_read(_last, _last),
         "both rows are frozen. The first is the lens: it divides each stage by its own size."),
        (_read(_last, _own),
         "the two rows are exchanged: the lens, where each stage has its own size, comes first."),
        (_read(_own, lambda x, c: _size(x[:1], c)[:, 0]),
         "the second row divides by the size of the first stage. The last stage gives the size."),
        (_read(lambda x, c: x.norm(dim=-1), lambda x, c: x[-1].norm()),
         "the rows are divided by their lengths. The size is the root of the *mean* square, "
         "with eps."),
        (_read(lambda x, c: x.pow(2).mean(-1).sqrt(), lambda x, c: x[-1].pow(2).mean().sqrt()),
         "eps is missing in the sizes: it is added to the mean square, as in `rms_norm`."),
        (_read(_own, lambda x, c: 1.0),
         "the second row is not divided at all. Divide it by the size of the last stage."),
        (lambda x, w, t, o, c: _read(_own, _last)(x, w | {"norm.weight": torch.ones(c.dim)},
                                                  t, o, c),
         "the weight of the last norm is missing: it scales the columns before the output matrix."),
        (lambda x, w, t, o, c: _read(_own, _last)(x, w, o, t, c),
         "the sign is wrong: the logit of `token` minus that of `other`."),
        (lambda x, w, t, o, c: torch.stack([
            x / size(x, c)[:, None] @ (w["norm.weight"] * w["output.weight"][t])
            for size in (_own, _last)]),
         "this is the logit of `token` alone. Take the logit of `other` off."),
    ],
    properties=[
        (of_each(_ends_agree),
         "at the last stage both rows should be equal: there the own size is the last size."),
    ],
)  # fmt: skip


# --- Contributions that add up --------------------------------------------------------------------


def _parts_cases():
    cases = {}
    for seed, L, N, H, V in ((1, 1, 2, 2, 5), (2, 3, 6, 4, 31), (3, 4, 3, 8, 31)):
        D = N * H
        config = Config(D, L, N, 1, V, 3, 0.05, 10000.0)
        shapes = {"norm.weight": (D,), "output.weight": (V, D)}
        shapes |= {f"layers.{i}.attention.wo.weight": (D, D) for i in range(L)}
        w = dict(zip(shapes, drawn(seed, *shapes.values()), strict=True))
        embedding, outputs, fed = drawn(seed + 9, (D,), (L, N, H), (L, D))
        cases[f"{L} layers of {N} heads"] = embedding, outputs, 2 * fed, w, 4, seed, config
    return cases


def _written(split="heads outside", own=False, order="heads first", exact=True):
    """[1 + L (N + 1)] contributions, in which something may be wrong."""

    def answer(embedding, outputs, fed, w, token, other, c):
        L, N, H = outputs.shape
        rows = [embedding[None]]
        for i in range(L):
            wo = w[f"layers.{i}.attention.wo.weight"]
            if split == "heads outside":
                each = wo.unflatten(1, (N, H))  # [D, N, H]
            elif split == "rows":
                each = wo.unflatten(0, (N, H)).permute(2, 0, 1)
            else:
                each = wo.unflatten(1, (H, N)).transpose(1, 2)
            both = [torch.einsum("nh,dnh->nd", outputs[i], each), fed[i][None]]
            rows += both if order == "heads first" else both[::-1]
        if order == "feed-forwards last":
            rows = rows[:1] + rows[2::2] + rows[1::2]
        parts = torch.cat(rows)
        size = _size(parts if own else parts.sum(0), c) if exact else 1.0
        return parts / size @ _direction(w, token, other)

    return answer


def _adds_up(found, embedding, outputs, fed, w, token, other, c):
    """Whether the sum is the difference of the logits, which needs no part."""
    whole = embedding + fed.sum(0)
    for i in range(len(outputs)):
        whole = whole + linear(outputs[i].flatten(), w[f"layers.{i}.attention.wo.weight"])
    total = whole / _size(whole, c) @ _direction(w, token, other)
    return bool((found.sum() - total).abs() <= 1e-4 * found.abs().max())


contributions = Exercise(
    "One position: its embedding [D], the outputs of all heads [L, N, H], what the feed-forwards "
    "added [L, D]; all weights, two ids, Config -> [1 + L (N + 1)]: what each part contributes to "
    "the logit of `token` minus that of `other`: the embedding; then, layer by layer, heads 0 to "
    "N - 1 and the feed-forward.",
    right=_written(),
    cases=_parts_cases,
    hints=(
        "`wo` takes the outputs of all heads in one row, head 0's H numbers first. So head n's "
        "own columns are n H to (n + 1) H, and what it writes is its output times these.",
        "Collect the parts as rows [1 + L (N + 1), D], in the order asked for. Their sum is the "
        "whole row; its size divides all of them.",
    ),
    mistakes=[
        (_written(own=True),
         "each part is divided by its own size, so they do not add up. All are divided by the "
         "size of their sum."),
        (_written(split="rows"),
         "the heads are cut out of wo's rows. A matrix's columns are its inputs: head n owns "
         "columns n H to (n + 1) H."),
        (_written(split="heads inside"),
         "the columns are split as [H, N]: neighbouring columns belong to one head, so [N, H]."),
        (_written(order="feed-forward first"),
         "in each layer the heads come first, then the feed-forward."),
        (_written(order="feed-forwards last"),
         "all heads come before all feed-forwards. Go layer by layer: heads 0 to N - 1, then the "
         "layer's feed-forward."),
        (_written(exact=False),
         "nothing is divided by the size of the row, so the sum is not the difference of logits."),
        (lambda e, o, f, w, t, u, c: _written()(
            e, o, f, w | {"norm.weight": torch.ones(c.dim)}, t, u, c),
         "the weight of the last norm is missing."),
        (lambda e, o, f, w, t, u, c: _written()(e, o, f, w, u, t, c),
         "the sign is wrong: the logit of `token` minus that of `other`."),
        (lambda e, o, f, w, t, u, c: _written()(torch.zeros_like(e), o, f, w, t, u, c),
         "the embedding is missing: its contribution is 0, and the size of the row lacks it."),
    ],
    properties=[
        (of_each(lambda found, e, o, *rest: len(found) == 1 + len(o) * (o.shape[1] + 1)),
         "there are 1 + L (N + 1) parts: the embedding, and in each layer N heads and one "
         "feed-forward."),
        (of_each(_adds_up),
         "the contributions do not add up to the difference of the two logits."),
    ],
)  # fmt: skip


# --- Ablate, and name the skill -------------------------------------------------------------------


def _missed_cases():
    cases = {}
    for seed, (R, T, N, H) in ((1, (3, 2, 2, 1)), (2, (9, 5, 4, 3)), (3, (14, 7, 6, 2))):
        outputs, weight, shift = drawn(seed, (R, T, N, H), (R, T, N, H), (N, H))
        outputs = outputs + 2 * shift
        lengths = torch.arange(R) % T + 1
        real = torch.arange(T) < lengths[:, None]
        skills = [("sum", "fact", "pronoun")[r % 3 if seed < 3 else r * r % 3] for r in range(R)]
        cases[f"{R} texts"] = _Leads(weight * real[..., None, None]), outputs, real, skills, N - 1
    return cases


class _Leads:
    """A stand-in for the model's upper layers: outputs [R, T, N, H] -> leads [R]."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, outputs):
        return (outputs * self.weight).sum((1, 2, 3)).tanh() * 5

    def __eq__(self, other):
        return torch.equal(self.weight, other.weight)

    def __repr__(self):
        return "leads_of"


def _ablated(instead):
    """What `instead` (rows of the head that are text [M, H], outputs, real) puts in its place."""

    def outputs_of(outputs, real, head):
        changed = outputs.clone()
        changed[:, :, head] = instead(outputs[:, :, head], real)
        return changed

    return outputs_of


_MEAN = _ablated(lambda rows, real: rows[real].mean(0))


def _named(changed=_MEAN, fall=lambda before, after: before - after, add=torch.mean):
    def answer(leads_of, outputs, real, skills, head):
        falls = fall(leads_of(outputs), leads_of(changed(outputs, real, head)))
        names = sorted(set(skills))
        means = [add(falls[torch.tensor([s == name for s in skills])]) for name in names]
        best = int(torch.stack(means).argmax())
        return names[best], float(means[best])

    return answer


missed = Exercise(
    "leads_of (a function: a layer's outputs [R, T, N, H] -> the leads of the right answers [R]), "
    "the outputs as they are, real [R, T] (False where a row is padding), the skill of each text "
    "(a list of R names), a head -> (the skill whose mean lead falls most, by how much) when the "
    "head's output is everywhere its mean over all positions that are text.",
    right=_named(),
    cases=_missed_cases,
    hints=(
        "`outputs[real]` keeps the rows that are text, [number of them, N, H]. Change a clone.",
        "Take the fall of each text first, before minus after. Then the mean of each skill's own "
        "texts, and the largest of these means.",
    ),
    mistakes=[
        (_named(_ablated(lambda rows, real: torch.zeros_like(rows[0, 0]))),
         "the head's output is set to zero. Zero is something that the layers above may never "
         "have seen: put the mean in its place."),
        (_named(_ablated(lambda rows, real: rows.mean((0, 1)))),
         "padding counts in the mean. Only the positions with `real` are text."),
        (_named(_ablated(lambda rows, real: rows.mean(0))),
         "each position has a mean of its own, over the texts. The mean is over all positions "
         "that are text, one row for the head."),
        (_named(_ablated(lambda rows, real: rows[real].mean())),
         "one number replaces all H of the head's. Take the mean over positions only, so that a "
         "row of H numbers is left."),
        (_named(_ablated(lambda rows, real: rows.mean(1, keepdim=True))),
         "each text has a mean of its own, which still tells texts apart. Take one mean over all."),
        (_named(lambda outputs, real, head: outputs[real].mean(0).expand_as(outputs)),
         "all heads are replaced by their means. Only `head` is to be ablated."),
        (_named(fall=lambda before, after: after - before),
         "this is the skill that gains most. The fall is the lead before minus the lead after."),
        (_named(fall=lambda before, after: -after),
         "the skill with the smallest lead after the ablation is named. It may have been small "
         "before: take the difference."),
        (_named(add=torch.sum),
         "the falls of a skill are added up, so a skill with many texts wins. Take the mean."),
        (_named(add=torch.amax),
         "one text decides for its skill. Take the mean over the skill's texts."),
    ],
    properties=[
        (of_each(lambda found, *case: abs(found[1]) > 1e-6),
         "no lead falls at all. `outputs[real]` is a copy: writing into it changes nothing. Write "
         "into a clone of the outputs, at all positions of the head."),
    ],
)  # fmt: skip


# --- A patch --------------------------------------------------------------------------------------


def _patch_cases():
    cases = {}
    for seed, (T, i, t) in ((1, (3, 1, 1)), (2, (7, 2, 4)), (3, (6, 0, 2)), (4, (5, 3, 4))):
        numbers = torch.arange(T)
        ids, other = (numbers * 3 + 2) % 101, (numbers * 7 + 5 * seed) % 101
        name = f"{T} tokens, position {t} after {i} layers"
        cases[name] = _weights(SMALL, seed), ids, other, i, t, SMALL
    return cases


def _between(w, stream, layers, config):
    positions = torch.arange(stream.shape[-2])
    rotations, mask = rotations_at(positions, config), causal_mask(positions, len(positions))
    for i in layers:
        stream = block(stream, layer(w, i), rotations, mask, config)
    return stream


def _patched(place=lambda i, t: (i, t), swap=False, rows=lambda own, others, t: None):
    def answer(w, ids, other, i, t, c):
        i, t = place(i, t)
        base, source = (other, ids) if swap else (ids, other)
        own, others = (_between(w, w["tok_embeddings.weight"][tokens], range(i), c)
                       for tokens in (base, source))  # fmt: skip
        changed = rows(own, others, t)
        if changed is None:
            changed = own.clone()
            changed[t] = others[t]
        end = _between(w, changed, range(i, c.n_layers), c)
        return linear(rms_norm(end, w["norm.weight"], c.norm_eps), w["output.weight"]).float()

    return answer


def _mixed(own, others, t):
    return torch.cat([others[: t + 1], own[t + 1 :]])


def _added(own, others, t):
    changed = own.clone()
    changed[t] = own[t] + others[t]
    return changed


def _earlier_rows_stay(answer, w, ids, other, i, t, c):
    found = answer(w, ids, other, i, t, c)
    right = _patched(rows=lambda own, *_: own)(w, ids, other, i, t, c)
    return bool(((found - right)[:t].abs() <= 1e-4 * right.abs().max()).all())


patch = Exercise(
    "All weights, ids [T], other ids [T], a number of layers i, a position t, Config -> [T, V]: "
    "the logits of `ids` when after i layers the row at position t of its stream is the one of "
    "the run on `other`, and all layers from i on run on that.",
    right=_patched(),
    cases=_patch_cases,
    hints=(
        "Both texts go through layers 0 to i - 1. Then one row changes hands, in a clone of the "
        "stream of `ids`, and layers i to L - 1 run once.",
        "`block(stream, layer(weights, i), rotations, mask, config)` is one layer, as in "
        "notebook 07. After the last one come `norm.weight` and `output.weight`.",
    ),
    mistakes=[
        (_patched(swap=True),
         "the direction is wrong: the run on `ids` goes on, and receives one row of the run on "
         "`other`."),
        (_patched(lambda i, t: (min(i + 1, SMALL.n_layers), t)),
         "the patch comes one layer too late: after i layers, so before layer i."),
        (_patched(lambda i, t: (max(i - 1, 0), t)),
         "the patch comes one layer too early: layers 0 to i - 1 have run, i of them."),
        (_patched(lambda i, t: (0, t)),
         "this exchanges a token of the text. The row after i layers is asked for, which also "
         "holds what it has collected there."),
        (_patched(rows=lambda own, others, t: others),
         "all rows come from the other run. Only position t does."),
        (_patched(rows=_mixed),
         "all rows up to t come from the other run. Only position t does."),
        (_patched(rows=lambda own, others, t: torch.cat([own[:t], others[t:]])),
         "all rows from t on come from the other run. Only position t does."),
        (_patched(rows=_added),
         "the other row is added. It replaces the one that was there."),
        (lambda *case: _patched()(*case).softmax(-1),
         "these are probabilities. The logits are asked for."),
        (lambda *case: _patched()(*case)[-1],
         "this is the last row alone. The logits at all positions are asked for."),
        (_patched(rows=lambda own, others, t: own),
         "nothing has changed: these are the logits of `ids` as they are."),
    ],
    properties=[
        (answer_property(_earlier_rows_stay),
         "positions before t cannot see position t, so their logits must stay as they are."),
    ],
)  # fmt: skip


# --- A probe's control ----------------------------------------------------------------------------


def nearest_mean(x, labels):
    """A simple probe: rows [n, D], labels [n] -> a function: rows [m, D] -> labels [m]."""
    kinds = labels.unique()
    means = torch.stack([x[labels == kind].mean(0) for kind in kinds])
    return lambda rows: kinds[torch.cdist(rows, means).argmin(-1)]


def _control_cases():
    cases = {}
    for seed, (rows, n, D, kinds) in ((1, (12, 8, 2, 2)), (2, (60, 40, 6, 3)), (3, (90, 50, 9, 4))):
        noise, centres, keys = drawn(seed, (rows, D), (kinds, D), (rows,))
        labels = (torch.arange(rows) * 5 + seed) % kinds
        x = noise + 1.6 * centres[labels]
        cases[f"{rows} rows, {n} of them for training"] = (
            nearest_mean, x, labels, n, keys.argsort(),
        )  # fmt: skip
    return cases


def _scored(train=lambda labels, mixed: mixed, test=lambda labels, mixed: mixed, on="rest",
            order_rows=False, refit=True):  # fmt: skip
    def answer(fit, x, labels, n, order):
        some = slice(n, None) if on == "rest" else slice(n) if on == "train" else slice(None)
        mixed = labels[order]
        other = x[order] if order_rows else x
        probe = fit(x[:n], labels[:n])
        second = fit(other[:n], train(labels, mixed)[:n]) if refit else probe
        right = (probe(x[some]) == labels[some]).float().mean()
        control = (second(other[some]) == test(labels, mixed)[some]).float().mean()
        return torch.stack([right, control])

    return answer


control = Exercise(
    "fit (a function: rows [n, D], labels [n] -> a probe, itself a function: rows -> labels), rows "
    "x [M, D], labels [M], n, an order [M] (each number from 0 to M - 1 once) -> [2]: the share of "
    "rows from n on that a probe fitted on the first n gets right, and the same for the control "
    "task, whose labels are `labels[order]`, in training and in the test.",
    right=_scored(),
    cases=_control_cases,
    hints=(
        "Do everything twice, the second time with `labels[order]` in place of `labels`: fit on "
        "the first n, count on the rest.",
        "The rows stay where they are. The control's probe is another probe, and it is counted "
        "against the labels of its own task.",
    ),
    mistakes=[
        (_scored(on="train"),
         "both are counted on the rows that the probe was fitted on. A probe with enough numbers "
         "fits any labels there: count on the rows from n on."),
        (_scored(on="all"),
         "the rows of the training count too. Count only those from n on."),
        (_scored(test=lambda labels, mixed: labels),
         "the control's probe is counted against the true labels. Its task has labels of its own, "
         "`labels[order]`."),
        (_scored(refit=False),
         "the control has no probe of its own: fit a second one to `labels[order]`."),
        (lambda fit, x, labels, n, order: (len(x) - n) * _scored()(fit, x, labels, n, order),
         "these are numbers of hits. Divide by the number of rows from n on."),
        (_scored(order_rows=True),
         "rows and labels are reordered together, so each row keeps its own label, and nothing is "
         "a control. Reorder the labels alone."),
        (lambda *case: _scored()(*case).flip(0),
         "the two are exchanged: the true task comes first."),
        (lambda fit, x, labels, n, order: _scored()(fit, x, labels, n, order).diff().neg(),
         "this is the difference. Return both shares."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
