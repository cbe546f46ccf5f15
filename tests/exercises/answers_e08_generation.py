"""Answers to the exercises of notebook 08, written without a look at the checkers' own."""

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


def writes_into_it(logits, ids, penalty):
    logits[ids] = lowered(logits, ids, penalty)[ids]
    return logits


def rows(sees, shown=0.0, hidden=-INF):
    """A mask from (query, key, window) -> whether it is seen."""
    return lambda start, stop, window: torch.tensor(
        [[shown if sees(q, k, window) else hidden for k in range(stop)] for q in range(start, stop)]
    )


def shown(pieces, stop, waits=lambda held, stop: max(
        n for n in range(len(stop)) if held.endswith(stop[:n])), keep=0):  # fmt: skip
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)] + keep * stop
            return
        show = max(0, len(held) - waits(held, stop))
        yield held[:show]
        held = held[show:]
    yield held


def always(held, stop):
    return len(stop)


def by_letters(pieces, stop):
    """Holds back what matches letter by letter, and begins anew at the first that does not."""
    n, texts = 0, []
    for piece in pieces:
        texts.append("")
        for letter in piece:
            n = n + 1 if letter == stop[n] else 0
            if n == len(stop):
                return texts
            texts[-1] += letter * (n == 0)
    return [*texts, stop[:n]]


def beams(rank=float.__add__, width=2, answer=0, start=0.0, prompt=None, new=None):
    def search(model, given, n_new):
        texts, before = [([], start)], given if prompt is None else prompt
        for _ in range(n_new):
            texts = [
                ([*text, t], rank(score, log))
                for text, score in texts
                for t, log in enumerate(model([*before, *text]).tolist())
            ]
            texts = sorted(texts, key=lambda text: -text[1])[:width]
        return texts[answer][0][:new]

    return search


def two_greedy(model, prompt, n_new, start=1):
    text = [int(model(prompt).topk(2).indices[start])]
    while len(text) < n_new:
        text.append(model([*prompt, *text]).argmax())
    return text


RIGHT = {
    "e08_generation.min_p": [
        with_numpy,
        lambda logits, share: cut(logits.double().softmax(-1), share),
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
        lambda *case: torch.tensor(beams()(*case)),
        beams(lambda score, log: score * math.exp(log), start=1.0),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e08_generation.min_p": [
        (lambda logits, share: cut(logits.exp() / logits.exp().sum(), share), "there is NaN"),
        (lambda logits, share: cut(logits.sub_(1).softmax(-1), share), "it changes its arguments"),
        (lambda logits, share: cut(logits.softmax(-1), share, 1e-9), "all others get exactly 0"),
        #
        (lambda logits, share: logits.softmax(-1) * (logits >= share), "does not add up to 1"),
        (lambda logits, share: cut(logits.softmax(-1), share).softmax(-1).sort()[0], "exactly 0"),
        (lambda logits, share: cut((2 * logits).softmax(-1), 0.1), "the wrong tokens stay"),
        (lambda logits, share: cut((2 * logits).softmax(-1), share**2), "their own probabilities"),
    ],
    "e08_generation.penalise": [
        (writes_into_it, "it changes its arguments"),
        (lambda logits, ids, penalty: lowered(logits, ids[1:], penalty), "a positive logit"),
        (lambda logits, ids, penalty: lowered(logits, ids, 1.3), "divided by the penalty"),
        #
        (lambda logits, ids, penalty: logits / penalty, "does not occur in the text has changed"),
        (lambda logits, ids, penalty: logits.softmax(-1) / penalty, "has changed"),
        (lambda logits, ids, p: each_in(logits, ids[-1:], lambda x: x - p), "a positive logit"),
        (lambda logits, ids, p: each_in(logits, ids, lambda x: x / p**ids.count(0)), "logit"),
    ],
    "e08_generation.window_mask": [
        (lambda start, *rest: rows(lambda q, k, w: 0 <= q - k < w)(0, *rest), "shape is [4, 4]"),
        (rows(lambda q, k, w: 0 <= q - k < w, hidden=-1e4), "other numbers than 0"),
        #
        (rows(lambda q, k, w: q - w < k < q - 1), "a query does not see itself"),
        (rows(lambda q, k, w: abs(q - k) <= w), "the future is open"),
        (rows(lambda q, k, w: q - k < w + 1, 1.0, 0.0), "other numbers than 0"),
        (rows(lambda q, k, w: q - w - 1 <= k <= q), "too many or too few keys"),
    ],
    "e08_generation.stop_string": [
        (by_letters, "the entries, joined, are not the text"),
        (lambda pieces, stop: shown(filter(None, pieces), stop), "the number of entries"),
        (lambda pieces, stop: shown(pieces, stop, always), "shown too late"),
        #
        (lambda pieces, stop: shown(pieces, stop, always, keep=1), "the stop string is shown"),
        (lambda pieces, stop: [p.split(stop)[0] for p in pieces], "the stop string is shown"),
        (lambda pieces, stop: [*filter(None, shown(pieces, stop, always))], "number of entries"),
        (lambda pieces, stop: [*shown(pieces, stop)][:-1], "the entries, joined"),
    ],
    "e08_generation.beam_search": [
        (lambda *case: two_greedy(*case, start=0), "this is the greedy text"),
        (two_greedy, "is not the likeliest next token"),
        (lambda *case: [beams()(*case)] * 2, "does not have n_new ids"),
        (lambda model, prompt, n: prompt.extend(beams()(model, prompt, n)) or prompt[-n:],
         "it changes its arguments"),
        #
        (lambda model, prompt, n: [*prompt, *two_greedy(model, prompt, n)], "n_new ids"),
        (beams(lambda score, log: log, new=-1), "does not have n_new ids"),
        (beams(lambda score, log: log, answer=1), "is not the likeliest next token"),
        (beams(lambda score, log: score + math.exp(log), width=3), "a likely last token"),
        (beams(lambda score, log: score - log, prompt=[]), "is not the likeliest next token"),
    ],
}  # fmt: skip
