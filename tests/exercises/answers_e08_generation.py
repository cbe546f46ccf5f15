"""Answers to the exercises of notebook 08, apart from the checkers' own."""

import math

import numpy as np
import torch

INF = math.inf


def with_numpy(logits, share):
    e = np.exp(logits.numpy() - logits.numpy().max())
    e[e < share] = 0
    return e / e.sum()


def cut(p, least, outside=0.0):
    p = torch.where(p < least * p.max(), outside, p)
    return p / p.sum()


def lowered(logits, ids, penalty):
    at = torch.tensor(ids)
    new = torch.where(logits > 0, logits / penalty, logits * penalty)
    return logits.scatter(0, at, new[at])


def each_in(logits, ids, change):
    return torch.stack([change(x) if i in ids else x for i, x in enumerate(logits)])


def rows(sees, hidden=-INF):
    """A mask from (query, key, window) -> whether it is seen."""
    return lambda start, stop, window: torch.tensor(
        [[0.0 if sees(q, k, window) else hidden for k in range(stop)] for q in range(start, stop)]
    )


def may_begin(held, stop):
    return max(n for n in range(len(stop)) if held.endswith(stop[:n]))


def shown(pieces, stop, waits=may_begin):
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        show = max(0, len(held) - waits(held, stop))
        yield held[:show]
        held = held[show:]
    yield held


def always(held, stop):
    return len(stop)


def beams(rank=float.__add__, width=2, start=0.0):
    def search(model, prompt, n_new):
        texts = [([], start)]
        for _ in range(n_new):
            texts = [
                ([*text, t], rank(score, log))
                for text, score in texts
                for t, log in enumerate(model([*prompt, *text]).tolist())
            ]
            texts = sorted(texts, key=lambda text: -text[1])[:width]
        return texts[0][0]

    return search


def two_greedy(model, prompt, n_new, start=1):
    text = [int(model(prompt).topk(2).indices[start])]
    while len(text) < n_new:
        text.append(model([*prompt, *text]).argmax())
    return text


RIGHT = {
    "e08_generation.min_p": [
        with_numpy,
        lambda logits, share: logits.masked_fill(
            logits < logits.max() + torch.tensor(share).log(), -INF).softmax(-1),
    ],
    "e08_generation.penalise": [
        lowered,
        lambda logits, ids, p: each_in(logits.double(), ids, lambda x: min(x / p, x * p)),
    ],
    "e08_generation.window_mask": [
        rows(lambda q, k, w: 0 <= q - k < w),
        lambda start, stop, w: torch.ones(stop - start, stop).tril(start).triu(start - w + 1).log(),
    ],
    "e08_generation.stop_string": [shown],
    "e08_generation.beam_search": [
        beams(),
        beams(lambda score, log: score * math.exp(log), start=1.0),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e08_generation.min_p": [
        (lambda logits, share: cut(logits.exp() / logits.exp().sum(), share), "there is NaN"),
        (lambda logits, share: cut(logits.softmax(-1), share, 1e-9), "all others get exactly 0"),
        #
        (lambda logits, share: cut((2 * logits).softmax(-1), share**2), "their own probabilities"),
    ],
    "e08_generation.penalise": [
        (lambda logits, ids, penalty: lowered(logits, ids, 1.3), "divided by the penalty"),
        #
        (lambda logits, ids, penalty: logits.softmax(-1) / penalty, "has changed"),
        (lambda logits, ids, p: each_in(logits, ids[-1:], lambda x: x - p), "a positive logit"),
    ],
    "e08_generation.window_mask": [
        (lambda start, *rest: rows(lambda q, k, w: 0 <= q - k < w)(0, *rest), "shape is [4, 4]"),
        (rows(lambda q, k, w: 0 <= q - k < w, hidden=-1e4), "other numbers than 0"),
        #
        (rows(lambda q, k, w: abs(q - k) <= w), "the future is open"),
    ],
    "e08_generation.stop_string": [
        (lambda pieces, stop: shown(pieces, stop, always), "shown too late"),
        #
        (lambda pieces, stop: [p.split(stop)[0] for p in pieces], "the stop string is shown"),
        (lambda pieces, stop: [*filter(None, shown(pieces, stop, always))], "number of entries"),
    ],
    "e08_generation.beam_search": [
        (lambda *case: two_greedy(*case, start=0), "this is the greedy text"),
        #
        (lambda model, prompt, n: [*prompt, *two_greedy(model, prompt, n)], "n_new ids"),
        (beams(lambda score, log: score + math.exp(log), width=3), "a likely last token"),
    ],
}
