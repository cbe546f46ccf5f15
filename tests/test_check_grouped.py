"""Notebook 05's checkers: each kept wrong answer gets the message meant for it, and no other's."""

import pytest
import torch

from llama3_scratch import check
from llama3_scratch.model import rms_norm

# exercise: [(a distinctive part of what is said, an answer that deserves it), ...]
RIGHT = {
    check.readers: lambda k, N, K: [n for n in range(N) if n // (N // K) == k],
    check.merge_heads: lambda x: torch.cat(list(x), dim=-1),
    check.add_change: lambda x, weight, eps, f: f(rms_norm(x, weight, eps)) + x,
    check.cache_room: lambda c, memory, size: (
        (memory - c.n_parameters * size)
        // (2 * c.n_layers * c.n_kv_heads * c.dim // c.n_heads * size)
    ),
    check.pool_heads: lambda w, K, J: torch.cat(
        [torch.stack(heads).mean(0) for heads in batched(w.chunk(K), K // J)]
    ),
}
WRONG = {
    check.readers: [
        ("dealt out like cards", lambda k, N, K: [n for n in range(N) if n % K == k]),
        ("groups have K heads", lambda k, N, K: [K * k + g for g in range(K)]),
        ("four heads each", lambda k, N, K: [n for n in range(4 * K) if n // 4 == k]),
        ("one too far", lambda k, N, K: [k * (N // K) + g + 1 for g in range(N // K)]),
        ("stops before its second", lambda k, N, K: list(range(k * N // K, (k + 1) * N // K))[:-1]),
        ("question is the other way", lambda k, N, K: k * K // N),
        ("first head of the next group", lambda k, N, K: list(
            range(k * N // K, (k + 1) * N // K + 1))),
        ("the group before", lambda k, N, K: [(k - 1) * (N // K) + g for g in range(N // K)]),
        ("those between them", lambda k, N, K: (k * (N // K), k * (N // K) + N // K - 1)),
        ("every G-th head", lambda k, N, K: list(range(N))[k :: N // K]),
        ("for each query head which", lambda k, N, K: [n * K // N for n in range(N)]),
    ],
    check.merge_heads: [
        ("head by head", lambda x: x.reshape(x.shape[1], x.shape[0] * x.shape[2])),
        ("number 0 of every head", lambda x: torch.stack(list(x), dim=-1).flatten(1)),
        ("it still has a matrix", lambda x: torch.stack(list(x), dim=1)),
        ("into one dimension", lambda x: torch.cat(list(x), dim=0)),
        ("heads are added up", lambda x: sum(x)),
        ("the mean of the heads", lambda x: sum(x) / len(x)),
        ("each row is one head", lambda x: x.reshape(len(x), -1)),
    ],
    check.add_change: [
        ("added to the normalised copy", lambda x, w, eps, f: (n := rms_norm(x, w, eps)) + f(n)),
        ("read the stream as it is", lambda x, w, eps, f: f(x) + x),
        ("wrong way round", lambda x, w, eps, f: rms_norm(x, w, eps) + f(x)),
        ("normalised as well", lambda x, w, eps, f: (
            rms_norm(x + f(rms_norm(x, w, eps)), w, eps))),
        ("the change alone", lambda x, w, eps, f: f(rms_norm(x, w, eps))),
        ("Transformer of 2017", lambda x, w, eps, f: rms_norm(f(x) + x, w, eps)),
        ("normalises the change", lambda x, w, eps, f: rms_norm(f(x), w, eps) + x),
        ("weight is left out", lambda x, w, eps, f: x + f(rms_norm(x, w**0, eps))),
    ],
    check.cache_room: [
        ("for every query head", lambda c, m, b: room(c, m, b, each=2 * c.n_layers * c.dim * b)),
        ("and also a value", lambda c, m, b: room(c, m, b) * 2),
        ("one layer's cache", lambda c, m, b: room(c, m, b) * c.n_layers),
        ("take them away first", lambda c, m, b: room(c, m, b, weights=0)),
        ("belong to training", lambda c, m, b: room(c, m, b, weights=2 * c.n_parameters * b)),
        ("the cache is counted in numbers", lambda c, m, b: room(c, m, b) * b),
        ("the weights are counted in", lambda c, m, b: room(c, m, b, weights=c.n_parameters)),
        ("holds queries too", lambda c, m, b: room(
            c, m, b, each=(c.n_heads + 2 * c.n_kv_heads) * c.head_dim * c.n_layers * b)),
        ("as wide as all N", lambda c, m, b: (
            (m - c.n_parameters * b) // (2 * c.n_layers * c.n_kv_heads * c.dim * b))),
        ("takes 2 bytes here", lambda c, m, b: room(c, m, 2)),
        ("nothing is counted in bytes", lambda c, m, b: room(c, m, 1)),
        ("How many tokens fit", lambda c, m, b: m - b * c.n_parameters),
        ("one key/value head", lambda c, m, b: room(c, m, b) * c.n_kv_heads),
    ],
    check.pool_heads: [
        ("every J-th head", lambda w, K, J: sum(w.chunk(K // J)) / (K // J)),
        ("one and the same head", lambda w, K, J: w.reshape(-1, K // J, w.shape[1]).mean(1)),
        ("these are sums", lambda w, K, J: torch.cat(
            [sum(heads) for heads in batched(w.chunk(K), K // J)])),
        ("first head of each group is kept", lambda w, K, J: torch.cat(w.chunk(K)[:: K // J])),
        ("first heads are kept", lambda w, K, J: w[: J * len(w) // K]),
        ("heads of J each", lambda w, K, J: torch.cat(
            [sum(heads) / J for heads in batched(w.chunk(K), J)])),
        ("a single row", lambda w, K, J: torch.stack([part.mean(0) for part in w.chunk(J)])),
        ("they stand in [J, H, D]", lambda w, K, J: w.reshape(
            J, K // J, w.shape[0] // K, w.shape[1]).mean(1)),
        ("still K heads", lambda w, K, J: torch.cat(
            [sum(heads) / (K // J) for heads in batched(w.chunk(K), K // J) for _ in heads])),
    ],
}  # fmt: skip


def batched(items, n):
    return [items[i : i + n] for i in range(0, len(items), n)]


def room(c, memory, size, weights=None, each=None):
    """The right answer, unrounded, but for what is given."""
    weights = c.n_parameters * size if weights is None else weights
    each = each or 2 * c.n_layers * c.n_kv_heads * c.head_dim * size
    return (memory - weights) / each


@pytest.mark.parametrize("checker", RIGHT, ids=lambda checker: checker.__name__)
def test_the_right_answer_is_accepted(checker, capsys):
    checker(RIGHT[checker])
    assert capsys.readouterr().out.startswith("Right: ")


CASES = [(checker, part, wrong) for checker, answers in WRONG.items() for part, wrong in answers]


@pytest.mark.parametrize(
    ("checker", "part", "wrong"), CASES, ids=[f"{c.__name__}: {part}" for c, part, _ in CASES]
)
def test_a_wrong_answer_is_told_what_is_wrong(checker, part, wrong, capsys):
    checker(wrong)
    told = capsys.readouterr().out
    assert told.startswith("Not yet: ") and part in told, told
    others = [other for _, other, _ in CASES if other != part]
    assert not any(other in told for other in others), told


@pytest.mark.parametrize("kind", [range, lambda *ends: torch.arange(*ends)])
def test_a_range_and_a_tensor_are_as_good_as_a_list(kind, capsys):
    check.readers(lambda k, N, K: kind(k * N // K, (k + 1) * N // K))
    assert capsys.readouterr().out.startswith("Right: ")


def test_what_is_shown_of_a_case_has_no_addresses(capsys):
    check.add_change(lambda x, w, eps, f: x - f(x))
    told = capsys.readouterr().out
    assert "a sub-layer" in told and "0x" not in told
