"""Answers to the exercises of notebook 08, apart from the checkers' own."""

import math
import random

import numpy as np
import torch

INF = math.inf


def by_hand(logits, temperature, top_k, top_p, r):
    if temperature == 0:
        return max(range(len(logits)), key=lambda i: logits[i])
    exps = [(math.exp((x - max(logits.tolist())) / temperature), i)
            for i, x in enumerate(logits.tolist())]  # fmt: skip
    ordered = sorted(exps, reverse=True)[:top_k]
    whole, before, kept = sum(e for e, _ in ordered), 0.0, []
    for e, i in ordered:
        if before <= top_p * whole:
            kept.append((e, i))
        before += e
    left = r * sum(e for e, _ in kept)
    for e, i in kept:
        left -= e
        if left < 0:
            return i
    return kept[-1][1]


def with_search(logits, temperature, top_k, top_p, r):
    if not temperature:
        return logits.argmax()
    values, order = logits.topk(top_k)
    p = (values.double() / temperature).softmax(0)
    p = torch.where(p.cumsum(0) - p > top_p, 0.0, p)
    ends = (p / p.sum()).cumsum(0)
    return order[torch.searchsorted(ends, torch.tensor(r).double(), right=True)]


def at_random(logits, temperature, top_k, top_p, r):
    return with_search(logits, temperature, top_k, top_p, random.random())


def top_p_first(logits, temperature, top_k, top_p, r):
    if not temperature:
        return logits.argmax()
    p, order = (logits / temperature).softmax(0).sort(descending=True)
    p = p[p.cumsum(0) - p <= top_p / 2][:top_k]
    return order[(p.cumsum(0) <= r).sum()]


def with_numpy(logits, share):
    e = np.exp(logits.numpy() - logits.numpy().max())
    e[e < share] = 0
    return e / e.sum()


def cut(p, least, outside=0.0):
    p = torch.where(p < least * p.max(), outside, p)
    return p / p.sum()


def grammar(logits, written, sentences, texts, fits=str.startswith, outside=-INF):
    return torch.stack([
        x if text and any(fits(each, written + text) for each in sentences)
        else torch.tensor(outside)
        for x, text in zip(logits, texts, strict=True)
    ])  # fmt: skip


def by_prefixes(logits, written, sentences, texts):
    prefixes = {each[:n] for each in sentences for n in range(len(each) + 1)}
    allowed = [len(text) > 0 and written + text in prefixes for text in texts]
    return logits.masked_fill(~torch.tensor(allowed), -INF)


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


RIGHT = {
    "e08_choosing.choose": [by_hand, with_search],
    "e08_choosing.min_p": [
        with_numpy,
        lambda logits, share: logits.masked_fill(
            logits < logits.max() + torch.tensor(share).log(), -INF).softmax(-1),
    ],
    "e08_choosing.constrain": [grammar, by_prefixes],
    "e08_choosing.stop_string": [shown],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e08_choosing.choose": [
        (lambda logits, temperature, *rest: (
            logits.argmax() if temperature == 0 else by_hand(-logits, temperature, *rest)),
         "for r = 0"),
        (lambda logits, temperature, top_k, top_p, r: by_hand(
            logits, temperature and 1 / temperature, top_k, top_p, r), "Divide"),
        (lambda logits, temperature, *rest: by_hand(logits, temperature or 1, *rest),
         "is taken for 1"),
        #
        (at_random, "called twice"),
        (top_p_first, "should have been cut off"),
        (lambda logits, temperature, top_k, top_p, r: with_search(
            logits, temperature or 1, top_k, 1.0, r), "at temperature 0 the result has to be"),
        (lambda logits, *rest: logits.softmax(-1).max(), "the result is"),
    ],
    "e08_choosing.min_p": [
        (lambda logits, share: cut(logits.exp() / logits.exp().sum(), share), "there is NaN"),
        (lambda logits, share: cut(logits.softmax(-1), share, 1e-9), "all others get exactly 0"),
        #
        (lambda logits, share: cut((2 * logits).softmax(-1), share**2), "their own probabilities"),
    ],
    "e08_choosing.constrain": [
        (lambda *given: grammar(*given, outside=-1e4), "is not masked"),
        (lambda logits, *rest: logits * grammar(torch.ones_like(logits), *rest, outside=0.0),
         "e^0 = 1"),
        (lambda logits, written, sentences, texts: grammar(logits, "", sentences, texts),
         "what is written so far is not considered"),
        (lambda logits, *rest: logits * grammar(torch.ones_like(logits), *rest),
         "is not masked"),
        #
        (lambda logits, written, sentences, texts: grammar(
            2 * logits, written, sentences[:2], texts), "is masked after which"),
        (lambda logits, *rest: grammar(2 * logits, *rest), "have changed"),
    ],
    "e08_choosing.stop_string": [
        (lambda pieces, stop: shown(pieces, stop, always), "shown too late"),
        #
        (lambda pieces, stop: [p.split(stop)[0] for p in pieces], "the stop string is shown"),
        (lambda pieces, stop: [*filter(None, shown(pieces, stop, always))], "number of entries"),
    ],
}  # fmt: skip
