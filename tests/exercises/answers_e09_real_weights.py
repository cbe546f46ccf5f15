"""Answers to the exercises of notebook 09, apart from the checkers' own."""

import json
import struct

import numpy as np
import torch


def of_cache(c, n, K=None):
    return 2 * c.n_layers * n * (K or c.n_kv_heads) * c.dim // c.n_heads


def joined(name, parts, columns=("wo", "w2"), once=("norm",)):
    """As it is, but for the tensors whose names have these words."""
    if any(word in name for word in once):
        return parts[-1]
    return torch.hstack(parts) if any(word in name for word in columns) else torch.vstack(parts)


def place(data, name, before=8, step=lambda start, stop: (start, stop)):
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length].decode())
    return [before + length + x for x in step(*table[name]["data_offsets"])]


def heads_in_order(w, H, order):
    return torch.cat([head[order(H // 2)] for head in w.split(H)])


def alternating(P):
    return [row for p in range(P) for row in (p, p + P)]


def by_index(w, H):
    row = torch.arange(len(w))
    return w[row // H * H + row % 2 * (H // 2) + row % H // 2]


def alphabet(begin=256):
    """{letter: byte}, made as GPT-2's code makes it."""
    table, n = {}, 0
    for byte in range(256):
        plain = 33 <= byte <= 126 or 161 <= byte <= 255 and byte != 173
        table[chr(byte if plain else begin + n)] = byte
        n += not plain
    return table


def read(text, begin=256):
    return bytes([alphabet(begin).get(letter, 63) for letter in text])


RIGHT = {
    "e09_real_weights.n_bytes": [
        lambda c, n, size: size * (c.n_parameters + of_cache(c, n)),
        lambda c, n, size: np.int64(size) * (
            c.n_parameters + sum(2 * c.sizes["K"] * c.sizes["H"] * n for _ in range(c.n_layers))),
    ],
    "e09_real_weights.join_shards": [
        joined,
        lambda name, parts: sum(parts) / len(parts) if parts[0].ndim == 1 else (
            np.concatenate(parts, 1 if ".wo." in name or ".w2." in name else 0)),
    ],
    "e09_real_weights.tensor_place": [place, lambda data, name: np.array(place(data, name))],
    "e09_real_weights.unpermute": [
        by_index,
        lambda w, H: w.view(-1, 2, H // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape),
    ],
    "e09_real_weights.token_bytes": [
        read,
        lambda text: b"".join(bytes([alphabet()[letter]]) for letter in text),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e09_real_weights.n_bytes": [
        (lambda c, n, size: size * (c.n_parameters + of_cache(c, n - 1)), "with 0 positions"),
        (lambda c, n, size: size * (c.n_parameters + of_cache(c, n, 8)), "what a position takes"),
        #
        (lambda c, n, size: 2 * (c.n_parameters + of_cache(c, n, c.n_heads)), "6 times the size"),
    ],
    "e09_real_weights.join_shards": [
        (lambda name, parts: joined(name, parts, [
            f"layers.{i}.{kind}" for i in range(10) for kind in ("attention.wo", "feed_forward.w2")
        ]), "layers.31.feed_forward.w2"),
        #
        (lambda name, parts: joined(name, parts, ("wo", "wv")), "layers.3.feed_forward.w2"),
        (lambda name, parts: joined(name, [p + 1 for p in parts[::-1]]), "a norm's weight"),
    ],
    "e09_real_weights.tensor_place": [
        (lambda data, name: json.loads(data[8 : 8 + data[0]])[name]["data_offsets"], "it raised"),
        (lambda data, name: [len(data) - size for size in (20, 0)], "not the number of bytes"),
        #
        (lambda data, name: place(data, name, 7, step=lambda start, stop: (start - 8, stop - 8)),
         "a place before the data"),
    ],
    "e09_real_weights.unpermute": [
        (lambda w, H: torch.cat([x[alternating(H // 2)] for x in w.split(H)]), "it has a loop"),
        (lambda w, H: heads_in_order(w, H, lambda P: [*range(P), *range(P)]), "one place"),
        #
        (lambda w, H: w.view(-1, 2, H // 2, w.shape[1]).transpose(0, 2).flip(1).reshape(w.shape),
         "a head has rows of another"),
    ],
    "e09_real_weights.token_bytes": [
        (lambda text: read(text, 255), "a letter from 256 on"),
        (lambda text: text.encode("latin-1", "replace"), "a letter from 256 on"),
        #
        (lambda text: text.strip("Ġ").encode("latin-1", "ignore"), "the number of letters"),
    ],
}  # fmt: skip
