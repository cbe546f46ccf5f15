"""Notebook 09's checkers: each kept wrong answer gets the message meant for it, and no other's."""

import json
import math
import struct

import pytest
import torch

from llama3_scratch import check, weight_shapes
from llama3_scratch.huggingface import in_metas_order


def of_cache(c, n):
    return 2 * c.n_layers * n * c.n_kv_heads * c.dim // c.n_heads


def header(data):
    """A safetensors' bytes -> (length of the header, its content)."""
    (length,) = struct.unpack("<Q", data[:8])
    return length, json.loads(data[8 : 8 + length])


def offsets(data, name, base):
    start, stop = header(data)[1][name]["data_offsets"]
    return [base + start, base + stop]


def joined(name, parts, columns=("wo", "w2"), once=("norm",)):
    """As it is, but for the tensors whose names have these words."""
    if any(word in name for word in once):
        return parts[0]
    return torch.hstack(parts) if any(word in name for word in columns) else torch.vstack(parts)


def pairs(w, H, order):
    """Each head's rows in another order: order(P) -> H numbers of rows."""
    heads = [head[order(H // 2)] for head in w.split(H)]
    return torch.cat(heads)


def meta(P):
    return [row for p in range(P) for row in (p, p + P)]


def alphabet():
    """{letter: byte}, made as GPT-2's code makes it."""
    table, n = {}, 0
    for byte in range(256):
        plain = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
        table[chr(byte if plain else 256 + n)] = byte
        n += not plain
    return table


RIGHT = {
    check.n_bytes: lambda c, n, size: size * (c.n_parameters + of_cache(c, n)),
    check.join_shards: joined,
    check.tensor_place: lambda data, name: offsets(data, name, 8 + header(data)[0]),
    check.unpermute: lambda w, H: pairs(w, H, meta),
    check.token_bytes: lambda text: bytes([alphabet()[letter] for letter in text]),
}
# exercise: [(a distinctive part of what is said, an answer that deserves it), ...]
WRONG = {
    check.n_bytes: [
        ("the cache is missing", lambda c, n, size: size * c.n_parameters),
        ("counted twice here", lambda c, n, size: size * (
            sum(map(math.prod, weight_shapes(c).values())) + of_cache(c, n))),
        ("every query head", lambda c, n, size: size * (
            c.n_parameters + 2 * c.n_layers * n * c.dim)),
        ("keys or values, not both", lambda c, n, size: size * (
            c.n_parameters + of_cache(c, n) // 2)),
        ("that of one layer", lambda c, n, size: size * (
            c.n_parameters + of_cache(c, n) // c.n_layers)),
        ("that of one position", lambda c, n, size: size * (c.n_parameters + of_cache(c, 1))),
        ("the weights in bytes", lambda c, n, size: size * c.n_parameters + of_cache(c, n)),
        ("the cache in bytes", lambda c, n, size: c.n_parameters + size * of_cache(c, n)),
        ("numbers, not bytes", lambda c, n, size: c.n_parameters + of_cache(c, n)),
        ("2 bytes are typed in", lambda c, n, size: 2 * (c.n_parameters + of_cache(c, n))),
        ("these are gigabytes", lambda c, n, size: (c.n_parameters + of_cache(c, n)) * size / 1e9),
        ("these are GiB", lambda c, n, size: (c.n_parameters + of_cache(c, n)) * size / 1024**3),
        ("that of the longest text", lambda c, n, size: size * (
            c.n_parameters + of_cache(c, c.context_length))),
        ("counted as one number", lambda c, n, size: size * (
            c.n_parameters + 2 * c.n_layers * n * c.n_kv_heads)),
        ("this is the cache", lambda c, n, size: size * of_cache(c, n)),
    ],
    check.join_shards: [
        ("every matrix is joined by rows", lambda name, parts: joined(name, parts, ())),
        ("every matrix is joined by columns", lambda name, parts: joined(name, parts, ("",))),
        ("rows and columns are swapped", lambda name, parts: joined(
            name, parts, ("wq", "wk", "wv", "w1", "w3", "tok", "output"))),
        ("the norms are joined", lambda name, parts: joined(name, parts, once=())
            if parts[0].dim() == 2 else torch.cat(parts)),
        ("the norms are added up", lambda name, parts: joined(name, parts)
            if parts[0].dim() == 2 else torch.stack(parts).sum(0)),
        ("wo is joined by rows", lambda name, parts: joined(name, parts, ("w2",))),
        ("w2 is joined by rows", lambda name, parts: joined(name, parts, ("wo",))),
        ("w1 and w3 are joined by columns", lambda name, parts: joined(
            name, parts, ("wo", "feed_forward"))),
        ("as Llama 2 had it", lambda name, parts: joined(name, parts, ("wo", "w2", "tok"))),
        ("the output matrix is joined", lambda name, parts: joined(
            name, parts, ("wo", "w2", "output"))),
        ("the slices are added up", lambda name, parts: parts[0]
            if "norm" in name else torch.stack(parts).sum(0)),
        ("file 00 comes first", lambda name, parts: joined(name, list(reversed(parts)))),
        ("from the files in turn", lambda name, parts: in_turn(name, parts)),
        ("slice of the first file", lambda name, parts: parts[0]),
    ],
    check.tensor_place: [
        ("the header's own numbers", lambda data, name: offsets(data, name, 0)),
        ("not the 8 bytes before it", lambda data, name: offsets(data, name, header(data)[0])),
        ("not the header behind them", lambda data, name: offsets(data, name, 8)),
        ("how many bytes it has", lambda data, name: (
            offsets(data, name, 8 + header(data)[0])[0],
            offsets(data, name, 0)[1] - offsets(data, name, 0)[0])),
        ("the last byte is left out", lambda data, name: (
            offsets(data, name, 8 + header(data)[0])[0],
            offsets(data, name, 7 + header(data)[0])[1])),
        ("taken from its content", lambda data, name: offsets(
            data, name, 8 + len(data[8 : 8 + header(data)[0]].rstrip()))),
        ("the tensor's bytes", lambda data, name: data[slice(
            *offsets(data, name, 8 + header(data)[0]))]),
        ("JSONDecodeError", lambda data, name: json.loads(
            data[8 : 8 + int.from_bytes(data[:8], "big")])[name]["data_offsets"]),
    ],
    check.unpermute: [
        ("exercise 3.4", lambda w, H: pairs(w, H, lambda P: [
            *range(0, 2 * P, 2), *range(1, 2 * P, 2)])),
        ("the heads are mixed", lambda w, H: w[meta(len(w) // 2)]),
        ("read as the number of heads", lambda w, H: pairs(w, len(w) // H, meta)),
        ("second half comes first", lambda w, H: pairs(w, H, lambda P: [
            row for p in range(P) for row in (p + P, p)])),
        ("the columns are reordered", lambda w, H: w[:, meta(w.shape[1] // 2)]),
        ("the rows are as they were", lambda w, H: w.clone()),
        ("heads and rows is swapped", lambda w, H: torch.stack(
            [pairs(w, H, meta)[row::H] for row in range(H)]).flatten(0, 1)),
        ("three or more dimensions", lambda w, H: pairs(w, H, meta).view(-1, H, w.shape[1])),
    ],
    check.token_bytes: [
        ("letters as they stand there", lambda text: text.encode("utf-8")),
        ("Ġ has become a space", lambda text: text.replace("\u0120", " ").encode()),
        ("Ġ and Ċ are right", lambda text: text.replace("\u0120", " ").replace("\u010a", "\n")
            .encode()),
        ("modulo 256", lambda text: bytes([ord(letter) & 255 for letter in text])),
        ("written as a letter", lambda text: "".join(
            {byte: letter for letter, byte in alphabet().items()}[byte] for byte in text.encode())),
        ("the result is text", lambda text: bytes(map(alphabet().get, text)).decode(
            "utf-8", "replace")),
        ("a list of numbers", lambda text: [alphabet()[letter] for letter in text]),
    ],
}  # fmt: skip
CASES = [(checker, part, wrong) for checker, answers in WRONG.items() for part, wrong in answers]


def in_turn(name, parts):
    if "norm" in name:
        return parts[0]
    if "wo" in name or "w2" in name:
        return in_turn("", [part.T for part in parts]).T
    return torch.stack([row for rows in zip(*parts, strict=True) for row in rows])


@pytest.mark.parametrize("checker", RIGHT, ids=lambda checker: checker.__name__)
def test_the_right_answer_is_accepted(checker, capsys):
    checker(RIGHT[checker])
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("checker", "part", "wrong"), CASES, ids=[f"{c.__name__}: {part}" for c, part, _ in CASES]
)
def test_a_wrong_answer_is_told_what_is_wrong(checker, part, wrong, capsys):
    checker(wrong)
    told = capsys.readouterr().out
    assert told.startswith("Not yet: ") and part in told, told
    others = [other for _, other, _ in CASES if other != part]
    assert not any(other in told for other in others), told


def test_the_packages_own_way_is_right(capsys):
    """What `load` does with Hugging Face's rows, on a matrix of its own."""

    def by_the_package(w, H):
        sizes = type("Sizes", (), {"head_dim": H})
        return in_metas_order({"attention.wq.weight": w}, sizes)("attention.wq.weight")

    check.unpermute(by_the_package)
    assert capsys.readouterr().out.startswith("Right: ")
