"""Answers to the exercises of notebook 24, apart from the checkers' own."""

import math

import torch

# --- 24.1 -----------------------------------------------------------------------------------------


def leftwards(x, rank, p, send, receive):
    """A ring in the other direction, in two loops."""
    size = len(x) // p
    rows = x.reshape(p, size).clone()
    left, right = (rank - 1) % p, (rank + 1) % p
    for step in range(p - 1):
        send(left, rows[(rank + step) % p])
        rows[(rank + step + 1) % p] += receive(right)
    for step in range(p - 1):
        send(left, rows[(rank + step - 1) % p])
        rows[(rank + step) % p] = receive(right)
    return rows.flatten()


def by_owners(x, rank, p, send, receive):
    """Each rank is sent one part by all others, and sends them its sum: no ring, as many bytes."""
    parts = x.split(len(x) // p)
    for other in range(p):
        if other != rank:
            send(other, parts[other])
    mine = parts[rank]
    for other in range(p):
        if other != rank:
            mine = mine + receive(other)
    for other in range(p):
        if other != rank:
            send(other, mine)
    return torch.cat([mine if other == rank else receive(other) for other in range(p)])


def receives_first(x, rank, p, send, receive):
    got = receive((rank - 1) % p)
    send((rank + 1) % p, x)
    return x + got


def whole_vectors(x, rank, p, send, receive):
    """All of x goes round the ring."""
    total, passing = x, x
    for _ in range(p - 1):
        send((rank + 1) % p, passing)
        passing = receive((rank - 1) % p)
        total = total + passing
    return total


def leftwards_without_return(x, rank, p, send, receive):
    size = len(x) // p
    rows = x.reshape(p, size).clone()
    for step in range(p - 1):
        send((rank - 1) % p, rows[(rank + step) % p])
        rows[(rank + step + 1) % p] += receive((rank + 1) % p)
    return rows.flatten()


# --- 24.2 -----------------------------------------------------------------------------------------


def by_index(name, weight, rank, p):
    if weight.dim() == 1:
        return weight
    dim = 1 if ".wo." in name or ".w2." in name else 0
    size = weight.shape[dim] // p
    return weight.narrow(dim, rank * size, size)


def by_shape(name, weight, rank, p):
    """A guess from the shape: the longer side is cut."""
    if weight.dim() == 1:
        return weight
    return weight.chunk(p, int(weight.shape[1] > weight.shape[0]))[rank]


# --- 24.3 -----------------------------------------------------------------------------------------


def by_logsumexp(slices, targets):
    sums = torch.stack([each.logsumexp(-1) for each in slices]).logsumexp(0)
    chosen, first = [], 0
    for t, target in enumerate(targets.tolist()):
        first = 0
        for each in slices:
            if first <= target < first + each.shape[1]:
                chosen.append(each[t, target - first])
            first += each.shape[1]
    return (sums - torch.stack(chosen)).mean()


def token_by_token(slices, targets):
    losses = []
    for t, target in enumerate(targets.tolist()):
        row = [x for each in slices for x in each[t].double().tolist()]
        top = max(row)
        losses.append(math.log(sum(math.exp(x - top) for x in row)) + top - row[target])
    return torch.tensor(sum(losses) / len(losses))


def joined(slices, targets):
    return torch.nn.functional.cross_entropy(torch.cat(slices, -1), targets)


def without_a_top(slices, targets):
    total = sum(each.exp().sum(-1) for each in slices).log()
    return total.mean() - (total.mean() - by_logsumexp(slices, targets))


# --- 24.4 -----------------------------------------------------------------------------------------


def by_logs(first, second):
    """Through the logarithms of the totals."""
    (a, a_top, a_total), (b, b_top, b_total) = first, second
    top = torch.where(a_top > b_top, a_top, b_top)
    seen = top != -math.inf
    safe = torch.where(seen, top, torch.zeros_like(top))
    x, y = torch.exp(a_top - safe), torch.exp(b_top - safe)
    return [a * x.unsqueeze(-1) + b * y.unsqueeze(-1), top, x * a_total + y * b_total]


def averaged(first, second):
    (a, a_top, a_total), (b, b_top, b_total) = first, second
    return (a + b) / 2, torch.maximum(a_top, b_top), a_total + b_total


def chain(x, rank, p, send, receive):
    """Up the ranks, adding, and down again: the ends send n numbers, the others 2n."""
    total = x + receive(rank - 1) if rank else x
    if rank + 1 < p:
        send(rank + 1, total)
        total = receive(rank + 1)
    if rank:
        send(rank - 1, total)
    return total


RIGHT = {
    "e24_many_devices.all_reduce": [leftwards, by_owners],
    "e24_many_devices.part": [by_index],
    "e24_many_devices.split_loss": [by_logsumexp, token_by_token],
    "e24_many_devices.merge": [by_logs],
}
OTHERS = {  # after a bare comment: two mistakes at once
    "e24_many_devices.all_reduce": [
        (receives_first, "all ranks wait"),
        (chain, "not every rank sends 2(p-1)/p n numbers"),
        (whole_vectors, "sends all of x p - 1 times"),
        (lambda x, rank, p, send, receive: send(9, x), "sends to rank 9"),
        (lambda x, rank, p, send, receive: leftwards(x, rank, p, send, receive)[:-1],
         "as many numbers as it was given"),
        (lambda x, rank, p, send, receive: None if rank else x, "it returned None"),
        (lambda x, rank, p, send, receive: receive(p - 1) if rank == 0 else x, "all ranks wait"),
        #
        (leftwards_without_return, "not those of all ranks' numbers"),
        (lambda *case: whole_vectors(*case) / case[2], "not those of all ranks' numbers"),
    ],
    "e24_many_devices.part": [
        (lambda name, weight, rank, p: weight.chunk(p)[rank], "wo and w2"),
        (lambda name, weight, rank, p: by_index(name, weight, p - 1 - rank, p), "for w1 [4, 4]"),
        (by_shape, "the shape is"),
    ],
    "e24_many_devices.split_loss": [
        (joined, "it joins the logits"),
        (lambda slices, targets: by_logsumexp(slices, targets).neg(), "the sign is wrong"),
        (without_a_top, "NaN"),
        #
        (lambda slices, targets: by_logsumexp(slices, targets) * len(slices), "the value is"),
    ],
    "e24_many_devices.merge": [
        (averaged, "the value is"),
        (lambda a, b: by_logs(a, b)[:2], "2 entries, expected 3"),
        (lambda a, b: a, "entry 0"),
    ],
}  # fmt: skip
