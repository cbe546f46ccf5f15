"""The exercises of notebook 24: a ring, a rank's slice, the loss of slices, softmax in parts."""

import collections
import functools
import math
import threading

import torch
from torch.nn import functional

from llama3_scratch.exercises.frame import Exercise, desk, drawn, of_each, uses

# --- Ranks ----------------------------------------------------------------------------------------


class _Wire:
    """What p ranks, one thread each, send one another; `sent` counts the numbers of each rank."""

    def __init__(self, p):
        self.mail = collections.defaultdict(collections.deque)
        self.changed = threading.Condition()
        self.sent, self.waiting, self.over = [0] * p, {}, False

    def send(self, rank, to, tensor):
        with self.changed:
            self._go_on()
            if not 0 <= to < len(self.sent):
                raise ValueError(f"rank {rank} sends to rank {to}; there are {len(self.sent)}.")
            self.sent[rank] += tensor.numel()
            self.mail[rank, to].append(tensor.detach().clone())
            self.waiting.pop(to, None)
            self.changed.notify_all()

    def receive(self, rank, source):
        with self.changed:
            while not self.mail[source, rank]:
                self.waiting[rank] = source
                self._go_on()
                self.changed.wait()
                self._go_on()
            self.waiting.pop(rank, None)
            return self.mail[source, rank].popleft()

    def _go_on(self):
        """Raise an error in each rank once there is nothing to wait for."""
        if self.over:
            raise RuntimeError("another rank has stopped.")
        if len(self.waiting) == len(self.sent):
            self.over = True
            self.changed.notify_all()
            rank, source = next(iter(self.waiting.items()))
            raise RuntimeError(
                f"all ranks wait: rank {rank} for rank {source}, which sends it nothing. Each has "
                "to send before it receives."
            )

    def finish(self, rank, failed=False):
        """A rank has ended: nobody gets mail from it any more."""
        with self.changed:
            self.waiting[rank] = f"{rank}, which has ended"
            self.over |= failed
            self.changed.notify_all()


def _on_ranks(answer, *vectors):
    """Run answer(x, rank, p, send, receive) on p ranks -> the results, the numbers each sent."""
    p, device = len(vectors), torch.get_default_device()
    wire, results, errors = _Wire(p), [None] * p, []

    def one(rank):
        send = functools.partial(wire.send, rank)
        receive = functools.partial(wire.receive, rank)
        try:
            with torch.device(device):
                results[rank] = answer(vectors[rank], rank, p, send, receive)
        except Exception as error:
            errors.append(error)
        wire.finish(rank, failed=results[rank] is None)

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(p)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.02)
    finally:
        wire.over = True
    if errors:
        raise errors[0]
    return None if any(result is None for result in results) else (results, wire.sent)


# --- All-reduce -----------------------------------------------------------------------------------


def _ring(x, rank, p, send, receive, add=lambda old, new: old + new, put=lambda old, new: new,
          first=None, second=None, turn=0, sign=-1, apart=1):  # fmt: skip
    parts = list(x.chunk(p))
    half = p - 1
    for step in range((half if first is None else first(p)) + (
            half if second is None else second(p))):  # fmt: skip
        out, into = (rank + sign * step) % p, (rank + sign * step - apart) % p
        send((rank + 1) % p, parts[out])
        join = add if step < half + turn else put
        parts[into] = join(parts[into], receive((rank - 1) % p))
    return torch.cat(parts)


def _to_all(x, rank, p, send, receive):
    others = [other for other in range(p) if other != rank]
    for other in others:
        send(other, x)
    return x + sum(receive(other) for other in others) if others else x


def _one_collects(x, rank, p, send, receive):
    if rank:
        send(0, x)
        return receive(0)
    total = x + sum(receive(other) for other in range(1, p)) if p > 1 else x
    for other in range(1, p):
        send(other, total)
    return total


def _same_part(x, rank, p, send, receive):
    """Each rank sends on its own part only, as it was."""
    parts = list(x.chunk(p))
    for step in range(p - 1):
        send((rank + 1) % p, parts[rank])
        into = (rank - step - 1) % p
        parts[into] = parts[into] + receive((rank - 1) % p)
    return torch.cat(parts)


def _vectors():
    whole = [torch.tensor([1.0, 2, 3, 4]), torch.tensor([10.0, 20, 30, 40])]
    return {
        "2 ranks, 4 numbers each": tuple(x.to(torch.get_default_device()) for x in whole),
        "3 ranks": tuple(drawn(1, *[(12,)] * 3)),
        "4 ranks": tuple(drawn(2, *[(20,)] * 4)),
        "5 ranks, 1 number a part": tuple(drawn(3, *[(5,)] * 5)),
        "a single rank": tuple(drawn(4, (6,))),
    }


def _sums_are(found, *vectors):
    results, _ = found
    return all(torch.allclose(x, sum(vectors), atol=1e-5) for x in results)


def _each_sends_the_same(found, *vectors):
    p, n = len(vectors), len(vectors[0])
    return all(sent == 2 * (p - 1) * n // p for sent in found[1])


all_reduce = Exercise(
    "x [n] of this rank, its number `rank`, the number of ranks p (n is a multiple of p), "
    "`send(to, tensor)` and `receive(source)` -> the sum [n] of all ranks' x. It runs on all ranks "
    "at once; each sends 2(p-1)/p n numbers. x itself stays as it is.",
    right=_ring,
    cases=_vectors,
    run=_on_ranks,
    hints=(
        "Cut x into p parts with `chunk(p)`. In the first p - 1 steps each rank sends one part to "
        "its right neighbour and adds what comes from its left neighbour to the part of the same "
        "number. Which part may rank r send first, so that in each step every part travels once?",
        "In step s rank r sends part (r - s) mod p, the part to which it added something in the "
        "step before. After p - 1 steps one part is complete on each rank. Then p - 1 more steps, "
        "by the same rule, in which what comes replaces what was there.",
    ),
    mistakes=[
        (lambda x, rank, p, send, receive: x,
         "nothing is sent: every rank returns its own x."),
        (_to_all,
         "the sums are right, but each rank sends all of x p - 1 times. Send parts: 2(p-1)/p n "
         "numbers are enough, however many ranks there are."),
        (_one_collects,
         "the sums are right, but everything goes through rank 0, which sends and receives (p-1) n "
         "numbers while the others wait. In a ring all do the same at once."),
        (lambda *case: _ring(*case, second=lambda p: 0),
         "only one part is complete on each rank. That is the first half, a reduce-scatter; the "
         "complete parts still have to go round."),
        (lambda *case: _ring(*case, put=lambda old, new: old + new),
         "in the second half a part that arrives is complete: it replaces the old one."),
        (lambda *case: _ring(*case) / case[2],
         "this is the mean over the ranks. An all-reduce gives the sum."),
        (lambda *case: _ring(*case, first=lambda p: p - 2 if p > 1 else 0),
         "one step is missing: p - 1 steps until a part is complete, and p - 1 until it is "
         "everywhere."),
        (lambda *case: _ring(*case, second=lambda p: p if p > 1 else 0),
         "the sums are right, but there is a step too many: p - 1 until a part is complete, and "
         "p - 1 until it is everywhere."),
        (lambda *case: _ring(*case, add=lambda old, new: new),
         "nothing is added: what arrives replaces a part in the first half already."),
        (lambda *case: _ring(*case, turn=-1),
         "it stops adding one step too early: add in p - 1 steps, then replace."),
        (lambda *case: _ring(*case, turn=1),
         "it adds in one step too many: add in p - 1 steps, then replace."),
        (lambda *case: _ring(*case, apart=0),
         "what arrives is joined to the part that this rank has just sent. It is the part that the "
         "left neighbour has sent, and its number is smaller by one."),
        (lambda *case: _ring(*case, sign=1),
         "the number of the part grows with each step. Send on the part to which you have just "
         "added something: its number is smaller by one."),
        (_same_part,
         "each rank sends its own part again and again. After the first step send on the part to "
         "which you have just added something."),
    ],
    properties=[
        (of_each(lambda found, *vectors: all(x.shape == vectors[0].shape for x in found[0])),
         "each rank has to return as many numbers as it was given."),
        (of_each(_sums_are),
         "the sums are not those of all ranks' numbers, or not on every rank."),
        (of_each(_each_sends_the_same),
         "the sums are right, but not every rank sends 2(p-1)/p n numbers: while one sends more, "
         "the others wait. Send one part a step, in 2(p-1) steps, all ranks at the same time."),
    ],
)  # fmt: skip


# --- A rank's slice -------------------------------------------------------------------------------

_ROWS = "wq", "wk", "wv", "w1", "w3", "output", "tok_embeddings"
_COLUMNS = "wo", "w2"


def _part(name, weight, rank, p, rows=_ROWS, columns=_COLUMNS, cut=torch.chunk):
    kind = name.split(".")[-2]
    if kind in rows:
        return cut(weight, p, 0)[rank]
    return cut(weight, p, 1)[rank] if kind in columns else weight


def _every_pth(weight, p, dim):
    """Slices whose rows, or columns, lie p apart."""
    places = range(weight.shape[dim])
    return [weight.index_select(dim, torch.tensor(list(places[r::p]))) for r in range(p)]


def _other(weight, p, dim):
    return weight.chunk(p, 1 - dim)


def _names():
    shapes = {
        "layers.0.attention.wq.weight": (8, 12), "layers.1.attention.wk.weight": (4, 12),
        "layers.0.attention.wv.weight": (4, 12), "layers.3.attention.wo.weight": (12, 8),
        "layers.0.feed_forward.w1.weight": (20, 12), "layers.2.feed_forward.w3.weight": (20, 12),
        "layers.0.feed_forward.w2.weight": (12, 20), "layers.0.attention_norm.weight": (12,),
        "layers.0.ffn_norm.weight": (12,), "norm.weight": (12,), "output.weight": (16, 12),
        "tok_embeddings.weight": (16, 12),
    }  # fmt: skip
    small = torch.arange(16.0).reshape(4, 4)
    cases = {"w1 [4, 4], rank 1 of 2": ("layers.0.feed_forward.w1.weight", small, 1, 2)}
    for i, (name, shape) in enumerate(shapes.items()):
        p = 4 if i % 3 else 2
        (weight,) = drawn(i, shape)
        cases[f"{name} {list(shape)}, rank {i % p} of {p}"] = name, weight, i % p, p
    last = drawn(50, (12, 8))[0]
    return cases | {"wo, the last of 4 ranks": ("layers.1.attention.wo.weight", last, 3, 4)}


part = Exercise(
    "A weight's name (Meta's), the weight, a rank and the number of ranks p, which divides what is "
    "cut -> this rank's slice. Rows: wq, wk, wv, w1, w3, output, tok_embeddings. Columns: wo, w2. "
    "A norm stays whole.",
    right=_part,
    cases=_names,
    hints=(
        "The name decides, and its second part from the end is enough: `name.split('.')[-2]`.",
        "`chunk(p, dim)` cuts into p neighbouring slices, rows with dim 0 and columns with dim 1.",
    ),
    mistakes=[
        (lambda *case: _part(*case, rows=(*_ROWS, *_COLUMNS), columns=()),
         "wo and w2 are cut by rows. Their inputs are what the rank has computed, its heads and "
         "its hidden numbers: cut their columns."),
        (lambda *case: _part(*case, cut=lambda weight, p, dim: weight.chunk(p)) if case[1].dim() > 1
         else case[1].chunk(case[3])[case[2]],
         "everything is cut along its first dimension. wo and w2 are cut by columns, and the norms "
         "stay whole."),
        (lambda *case: _part(*case, rows=(), columns=(*_ROWS, *_COLUMNS)),
         "all matrices are cut by columns. A column-wise wq or w1 gives partial sums, and the "
         "rotation or silu needs whole ones: cut the rows of all but wo and w2."),
        (lambda *case: _part(*case, cut=_other),
         "rows and columns are exchanged. A weight is [O, I]: rows belong to outputs, columns to "
         "inputs."),
        (lambda *case: _part(*case, rows=(*_ROWS, "attention_norm", "ffn_norm", "norm")),
         "the norms are cut. The stream is whole on every rank, so each needs all D weights."),
        (lambda *case: _part(*case, rows=_ROWS[:5]),
         "the embeddings and the output stay whole. Both are cut by the vocabulary, their rows."),
        (lambda *case: _part(*case, rows=_ROWS[:6]),
         "the embeddings stay whole. They are cut by the vocabulary, their rows."),
        (lambda *case: _part(*case, rows=_ROWS[:6], columns=(*_COLUMNS, "tok_embeddings")),
         "the embeddings are cut by columns. Here the vocabulary is shared out: cut the rows."),
        (lambda *case: _part(*case, rows=(*_ROWS[:5], "tok_embeddings")),
         "the output matrix stays whole. It is cut by the vocabulary, its rows."),
        (lambda *case: _part(*case, rows=(*_ROWS[:5], "tok_embeddings"),
                             columns=(*_COLUMNS, "output")),
         "the output matrix is cut by columns. Its rows are the vocabulary: cut the rows."),
        (lambda *case: _part(*case, rows=(*_ROWS, "wo"), columns=("w2",)),
         "wo is cut by rows. Its inputs are the outputs of the rank's heads: cut its columns."),
        (lambda *case: _part(*case, rows=(*_ROWS, "w2"), columns=("wo",)),
         "w2 is cut by rows. Its inputs are the rank's hidden numbers: cut its columns."),
        (lambda *case: _part(*case, cut=_every_pth),
         "a rank gets every p-th row or column. It has to be a block of neighbours, so that whole "
         "heads stay together."),
        (lambda name, weight, rank, p: _part(name, weight, 0, p),
         "every rank gets the first slice."),
        (lambda name, weight, rank, p: _part(name, weight, (rank + 1) % p, p),
         "the slices are shifted by one: ranks count from 0."),
        (lambda name, weight, rank, p: weight,
         "nothing is cut: every rank gets the whole weight."),
    ],
)  # fmt: skip


# --- The loss of slices ---------------------------------------------------------------------------


def _pieces(slices, targets):
    """-> each slice's largest logit [T], and the targets' logits [T]."""
    first, picked = 0, torch.zeros(len(targets))
    for each in slices:
        place = targets - first
        mine = (place >= 0) & (place < each.shape[1])
        rows = torch.arange(len(targets))
        picked = picked + torch.where(mine, each[rows, place.clamp(0, each.shape[1] - 1)], 0.0)
        first += each.shape[1]
    return torch.stack([each.amax(-1) for each in slices]), picked


def _split_loss(slices, targets, shift=None, picked=None, mean=torch.mean):
    largest, right = _pieces(slices, targets)
    top = largest.amax(0) if shift is None else shift(largest)
    total = sum((each - top[:, None]).exp().sum(-1) for each in slices)
    return mean(total.log() + top - (right if picked is None else picked(slices, targets)))


def _own_tops(slices, targets):
    largest, right = _pieces(slices, targets)
    total = sum((each - each.amax(-1, keepdim=True)).exp().sum(-1) for each in slices)
    return (total.log() + largest.amax(0) - right).mean()


def _sum_of_logs(slices, targets):
    _, right = _pieces(slices, targets)
    return (sum(each.logsumexp(-1) for each in slices) - right).mean()


def _without_offset(slices, targets):
    rows, width = torch.arange(len(targets)), slices[0].shape[1]
    found = [each[rows, targets % each.shape[1]] for each in slices]
    owner = (targets // width).clamp(max=len(slices) - 1)
    return torch.stack(found)[owner, rows]


def _added(slices, targets):
    """The logit at the target's place, in every slice that has such a place."""
    rows = torch.arange(len(targets))
    return sum(each[rows, targets.clamp(max=each.shape[1] - 1)] for each in slices)


def _at_multiples(of):
    """As `_pieces`, if the slices before number i held i times as many tokens as one of them."""

    def picked(slices, targets):
        total, rows = 0.0, torch.arange(len(targets))
        for i, each in enumerate(slices):
            place = targets - i * of(slices, each).shape[1]
            mine = (place >= 0) & (place < each.shape[1])
            found = each[rows, place.clamp(0, each.shape[1] - 1)]
            total = total + torch.where(mine, found, 0.0)
        return total

    return picked


def _clamped(slices, targets):
    """The logit at the target's place, or at a slice's edge where it lies outside."""
    total, first, rows = 0.0, 0, torch.arange(len(targets))
    for each in slices:
        total = total + each[rows, (targets - first).clamp(0, each.shape[1] - 1)]
        first += each.shape[1]
    return total


def _without_top(slices, targets):
    """The largest logit is subtracted, and not added again."""
    return _split_loss(slices, targets) - _pieces(slices, targets)[0].amax(0).mean()


def _loss_cases():
    def sliced(seed, sizes, T, scale=1.0, shift=0.0):
        logits = [x * scale + shift for x in drawn(seed, *[(T, size) for size in sizes])]
        generator = torch.Generator("cpu").manual_seed(seed)
        targets = torch.randint(sum(sizes), (T,), generator=generator, device="cpu")
        return logits, targets.to(logits[0].device)

    hand = [torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0]])]
    uneven, goals = sliced(7, (6, 6), 3)
    heights = torch.tensor([[0.0], [300.0], [-300.0]])
    return {
        "1 token, 2 slices of 2 logits": (hand, torch.tensor([2])),
        "5 tokens, 2 slices": sliced(1, (7, 7), 5),
        "4 tokens, 4 slices": sliced(2, (6, 6, 6, 6), 4, 3.0),
        "slices of different widths": sliced(3, (9, 8, 8), 6),
        "logits around 300": sliced(4, (5, 5), 4, 4.0, 300.0),
        "logits around -300": sliced(5, (5, 5, 5), 4, 4.0, -300.0),
        "tokens with logits around 0, 300 and -300": ([x + heights for x in uneven], goals),
        "slices of very different size": (
            [torch.full((2, 3), -200.0), torch.tensor([[5.0, 1, 0], [90.0, 88, 3]])],
            torch.tensor([4, 3])),
        "one slice": sliced(6, (11,), 3),
    }  # fmt: skip


split_loss = Exercise(
    "The logits of T tokens in slices of the vocabulary (a list of tensors [T, V/p], the first "
    "slice has the tokens from 0 on; widths may differ by one) and the targets [T] -> the mean "
    "loss, -ln of the targets' probabilities. Slices are not joined: only numbers [T] of different "
    "slices meet.",
    right=_split_loss,
    cases=_loss_cases,
    but=[(uses("cat", "hstack", "concatenate", "concat", "column_stack"),
          "it joins the logits. Then each rank needs all of them; three numbers [T] from each "
          "slice are enough.")],
    hints=(
        "ln p(target) = logit of the target - ln(sum of e^logit). The sum is a sum over slices. "
        "e^300 is infinite in float32, so the largest logit has to be subtracted first: the "
        "largest of which slices?",
        "Count `first`, the number of tokens in the slices before. A slice holds a target if "
        "0 <= target - first < width; the other slices give 0 for it, and all of them are added.",
    ),
    mistakes=[
        (_own_tops,
         "each slice subtracts its own largest logit, and the sums are added as if it were the "
         "same. Subtract the largest of all slices, or correct each sum before you add it."),
        (lambda s, t: _split_loss(s, t, shift=lambda largest: torch.zeros_like(largest[0])),
         "e^logit is infinite or 0 for large logits. Subtract the largest logit before, and add it "
         "again after the logarithm."),
        (lambda s, t: _split_loss(s, t, shift=lambda largest: largest[0]),
         "the largest logit of the first slice is subtracted everywhere. In another slice there "
         "may be a much larger one."),
        (lambda s, t: _split_loss(s, t, shift=lambda largest: largest.max().expand(len(t))),
         "one number is subtracted for all tokens. Each token needs its own largest logit, [T]: "
         "another token's may be so much larger that every power is 0."),
        (_without_top,
         "the largest logit is subtracted in the exponents and missing after the logarithm: add it "
         "again."),
        (_sum_of_logs,
         "you add the logarithms of the slices' sums. Add the sums, then take the logarithm."),
        (lambda s, t: _split_loss(s, t, picked=_without_offset),
         "the target's place within its slice is wrong where slices have different widths. "
         "Subtract the number of tokens in the slices before it."),
        (lambda s, t: _split_loss(s, t, picked=_at_multiples(lambda slices, each: slices[0])),
         "a slice does not begin at its number times the first slice's width: widths may differ. "
         "Count the tokens in the slices before it."),
        (lambda s, t: _split_loss(s, t, picked=_at_multiples(lambda slices, each: each)),
         "a slice does not begin at its number times its own width: widths may differ. Count the "
         "tokens in the slices before it."),
        (lambda s, t: _split_loss(s, t, picked=_clamped),
         "slices that do not hold the target give a logit for it, too. They must give 0."),
        (lambda s, t: _split_loss(s, t, picked=_added),
         "the target's logit is looked up in every slice, at the same place. Only one slice holds "
         "the target, at target minus the tokens before that slice."),
        (lambda s, t: -_split_loss(s, t),
         "the sign is wrong: a loss is -ln p."),
        (lambda s, t: _split_loss(s, t, mean=torch.sum),
         "this is the sum over the tokens. Return the mean."),
        (lambda s, t: _split_loss(s, t, mean=lambda x: x),
         "this is one loss for each token. Return their mean."),
        (lambda s, t: torch.stack([functional.cross_entropy(each, (t - sum(
            x.shape[1] for x in s[:i])).clamp(0, each.shape[1] - 1)) for i, each in
            enumerate(s)]).mean(),
         "you take the mean of the slices' own losses. A probability needs the sum over the whole "
         "vocabulary."),
        (lambda s, t: _split_loss(s, t, picked=lambda s, t: torch.zeros(len(t))),
         "the targets' logits are missing: this is ln of the sum alone."),
    ],
)  # fmt: skip


# --- Softmax in parts -----------------------------------------------------------------------------


def _scales(a, b, top):
    return [torch.where(each == -math.inf, 0.0, (each - top).exp()) for each in (a, b)]


def _merge(first, second, scales=_scales, wide=True, total=True):
    (a, a_top, a_total), (b, b_top, b_total) = first, second
    top = torch.maximum(a_top, b_top)
    left, right = scales(a_top, b_top, top)
    sums = a_total * left + b_total * right if total else a_total + b_total
    values = a * left[..., None] + b * right[..., None] if wide else a + b
    return values, top, sums


def _plain(a, b, top):
    return [(each - top).exp() for each in (a, b)]


def _turned(a, b, top):
    return [torch.where(each == -math.inf, 0.0, (top - each).exp()) for each in (a, b)]


def _exchanged(a, b, top):
    return _scales(b, a, top)


def _normalised(first, second):
    values, top, sums = _merge(first, second)
    return values / sums.clamp(min=1e-30)[..., None], top, sums


def _divided(first, second):
    values, top, sums = _merge(first, second)
    return values / sums[..., None], top, sums


def _one_top(first, second):
    """One top for all queries."""
    top = torch.maximum(first[1].max(), second[1].max()).expand_as(first[1])
    left, right = _scales(first[1], second[1], top)
    values = first[0] * left[..., None] + second[0] * right[..., None]
    return values, top, first[2] * left + second[2] * right


def _kept_first(first, second):
    (a, a_top, a_total), (b, b_top, b_total) = first, second
    factor = torch.where(b_top == -math.inf, 0.0, (b_top - a_top).exp())
    return a + b * factor[..., None], a_top, a_total + b_total * factor


def _of_keys(seed, T, S, H, front=(), scale=1.0, hidden=()):
    """What queries [..., T, H] get from S keys: (sums of e^(score - top) v, top, sums of e^)."""
    scores, values = drawn(seed, (*front, T, S), (*front, S, H))
    scores = scores * scale
    scores[..., list(hidden), :] = -math.inf
    top = scores.amax(-1)
    weights = torch.where(scores == -math.inf, 0.0, (scores - top[..., None]).exp())
    return weights @ values, top, weights.sum(-1)


def _merge_cases():
    hand = torch.tensor([[2.0, 4.0]]), torch.tensor([0.0]), torch.tensor([1.0])
    other = torch.tensor([[1.0, 3.0]]), torch.tensor([math.log(2.0)]), torch.tensor([1.0])
    return {
        "one query and one key in each part": (hand, other),
        "3 queries": (_of_keys(1, 3, 4, 6), _of_keys(2, 3, 5, 6)),
        "scores of very different size": (
            _of_keys(3, 4, 5, 2, scale=2.0), _of_keys(4, 4, 3, 2, scale=80.0)),
        "leading dimensions": (_of_keys(5, 3, 4, 2, (2, 5)), _of_keys(6, 3, 2, 2, (2, 5))),
        "2 of 4 queries see no key of the second part": (
            _of_keys(7, 4, 3, 2), _of_keys(8, 4, 3, 2, hidden=(0, 1))),
        "a query that sees no key of either part": (
            _of_keys(9, 3, 3, 2, hidden=(1,)), _of_keys(10, 3, 3, 2, hidden=(0, 1))),
    }  # fmt: skip


merge = Exercise(
    "What queries got from two parts of the keys, twice (values [..., T, H], top [..., T], total "
    "[..., T]): the sum of e^(score - top) v, the largest score, the sum of e^(score - top) -> the "
    "same three for both parts together. A query that sees no key has 0, minus infinity, 0.",
    right=_merge,
    cases=_merge_cases,
    run=lambda answer, *case: tuple(found) if isinstance(found := answer(*case), list | tuple)
    else found,
    hints=(
        "The new top is the larger of the two. A sum of e^(score - old top) becomes a sum of "
        "e^(score - new top) when it is multiplied by one number. Which?",
        "Multiply both `values` and `total` of each part by e^(old top - new top), then add. If a "
        "top is minus infinity, the part is empty: what should its factor be, and what is "
        "infinity minus infinity?",
    ),
    mistakes=[
        (lambda a, b: _merge(a, b, _plain),
         "right, but for a query that sees no key at all there is NaN: minus infinity minus minus "
         "infinity. An empty part has the factor 0."),
        (lambda a, b: _merge(a, b, lambda a, b, top: [torch.ones_like(top)] * 2),
         "both parts are added as they are. Each is relative to its own top: multiply by "
         "e^(old top - new top) first."),
        (lambda a, b: _merge(a, b, _turned),
         "the factor is turned round: e^(old top - new top), which is at most 1."),
        (lambda a, b: _merge(a, b, _exchanged),
         "the factors of the two parts are exchanged."),
        (lambda a, b: _merge(a, b, total=False),
         "the totals are added as they are. They need the same factors as the values."),
        (lambda a, b: _merge(a, b, wide=False),
         "the values are added as they are. They need the same factors as the totals."),
        (_normalised,
         "the values are divided by the total. Do that once, after the last part: the next merge "
         "needs the sums."),
        (_divided,
         "the values are divided by the total. Do that once, after the last part: the next merge "
         "needs the sums."),
        (_one_top,
         "there is one top for all queries. Each query has its own: compare the tops element by "
         "element."),
        (lambda a, b: _kept_first(b, a),
         "everything is made relative to the second part's top. If the first one is much larger, "
         "e^ of the difference is infinite: use the larger one."),
        (_kept_first,
         "everything is made relative to the first part's top. If the second one is much larger, "
         "e^ of the difference is infinite: use the larger one."),
        (lambda a, b: _merge(a, b)[0],
         "the top and the total are missing: the next part needs them."),
        (lambda a, b: (_merge(a, b)[0], a[1] + b[1], _merge(a, b)[2]),
         "the tops are added. The new one is the larger of the two."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
