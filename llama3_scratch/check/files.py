"""Checkers of notebook 09, real weights: files, shards, rows and bytes. Small, with odd sizes."""

import itertools
import json
import math

import torch

from llama3_scratch.check.frame import examine
from llama3_scratch.config import Config, weight_shapes


def _drawn(seed, *sizes):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = [torch.randn(size, generator=generator, device="cpu") for size in sizes]
    return [tensor.to(torch.get_default_device()) for tensor in drawn]


# --- 9.1: how many bytes --------------------------------------------------------------------------


def n_bytes(answer):
    """Weights and cache of one text together: (Config, positions, bytes to a number) -> bytes."""

    def cache(c, positions, heads=None, layers=None, kinds=2):
        heads, layers = heads or c.n_kv_heads, layers or c.n_layers
        return kinds * layers * heads * c.head_dim * positions

    def stored(c):  # a tied output matrix counted as one of its own
        return sum(math.prod(size) for size in weight_shapes(c).values())

    def right(c, positions, size):
        return (c.n_parameters + cache(c, positions)) * size

    mistakes = {
        "the cache is missing. Every position keeps a key and a value, in every layer.":
            lambda c, n, size: c.n_parameters * size,
        "a tied output matrix is the embedding table itself: it is counted twice here. "
        "`config.n_parameters` counts it once.":
            lambda c, n, size: (stored(c) + cache(c, n)) * size,
        "the cache has a key and a value for every query head. It needs them for the K key/value "
        "heads alone.": lambda c, n, size: (c.n_parameters + cache(c, n, heads=c.n_heads)) * size,
        "the cache has keys or values, not both: there is a factor of 2 missing.":
            lambda c, n, size: (c.n_parameters + cache(c, n, kinds=1)) * size,
        "the cache is that of one layer. Every layer has its own.":
            lambda c, n, size: (c.n_parameters + cache(c, n, layers=1)) * size,
        "the cache is that of one position.":
            lambda c, n, size: (c.n_parameters + cache(c, 1)) * size,
        "the cache is counted in numbers and the weights in bytes. Both take `size` bytes each.":
            lambda c, n, size: c.n_parameters * size + cache(c, n),
        "the weights are counted in numbers and the cache in bytes. Both take `size` bytes each.":
            lambda c, n, size: c.n_parameters + cache(c, n) * size,
        "these are numbers, not bytes: each takes `size` bytes.":
            lambda c, n, size: c.n_parameters + cache(c, n),
        "2 bytes are typed in. Use the argument `size`.":
            lambda c, n, size: right(c, n, 2),
        "these are gigabytes. Asked for are bytes.":
            lambda c, n, size: right(c, n, size) / 1e9,
        "these are GiB, 2**30 bytes each. Asked for are bytes.":
            lambda c, n, size: right(c, n, size) / 2**30,
        "the cache is that of the longest text, `config.context_length`. The argument `positions` "
        "says how long this one is.":
            lambda c, n, size: right(c, c.context_length, size),
        "a key or value is counted as one number. It is a vector of H, `config.head_dim`.":
            lambda c, n, size: (c.n_parameters + cache(c, n) // c.head_dim) * size,
        "the weights are missing; this is the cache.":
            lambda c, n, size: cache(c, n) * size,
    }  # fmt: skip
    cases = [
        (Config(60, 4, 6, 2, 101, 7, 1e-5, 10000.0), 33, 4),
        (Config(72, 3, 6, 3, 97, 11, 1e-5, 10000.0, tied_output=True), 50, 1),
        (Config(80, 5, 10, 2, 67, 13, 1e-5, 10000.0, 1.2), 21, 2),
    ]
    examine(answer, right, cases, mistakes)


# --- 9.2: the slices of several files -------------------------------------------------------------

_BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "tok_embeddings", "output")


def _kind(name):
    return name.split(".")[-2]


def _join(columns=(), rows=_BY_ROWS):
    """The function that joins so: the named ones by columns or rows, the others taken once."""

    def join(name, parts):
        if _kind(name) in columns:
            return torch.cat(parts, dim=1)
        return torch.cat(parts, dim=0) if _kind(name) in rows else parts[0]

    return join


def join_shards(answer):
    """One tensor from its slices in Meta's files: (name, list of tensors) -> tensor."""

    def reverse(name, parts):
        return _join(("wo", "w2"))(name, parts[::-1])

    def interleaved(name, parts):
        if parts[0].dim() == 1:
            return parts[0]
        dim = 1 if _kind(name) in ("wo", "w2") else 0
        return torch.stack(parts, dim=dim + 1).flatten(dim, dim + 1)

    everything = (*_BY_ROWS, "wo", "w2")
    mistakes = {
        "every matrix is joined by rows. wo and w2 have their columns shared out.":
            _join((), everything),
        "every matrix is joined by columns. Only those of wo and w2 are shared out; of the others "
        "it is the rows.": _join(everything, ()),
        "rows and columns are swapped: wo and w2 are joined by columns, the others by rows.":
            _join(_BY_ROWS, ("wo", "w2")),
        "the norms are joined as well. They stand whole in every file: take one.":
            lambda name, parts: (_join(("wo", "w2"))(name, parts) if parts[0].dim() == 2
                                 else torch.cat(parts)),
        "the norms are added up. They stand whole in every file: take one.":
            lambda name, parts: (_join(("wo", "w2"))(name, parts) if parts[0].dim() == 2
                                 else sum(parts)),
        "wo is joined by rows. Its columns are shared out: each belongs to a head, as the rows of "
        "wq do.": _join(("w2",), (*_BY_ROWS, "wo")),
        "w2 is joined by rows. Its columns are shared out, as the rows of w1 and w3 are.":
            _join(("wo",), (*_BY_ROWS, "w2")),
        "w1 and w3 are joined by columns. Each file has some of their rows.":
            _join(("wo", "w2", "w1", "w3"), ("wq", "wk", "wv", "tok_embeddings", "output")),
        "the embedding table is joined by columns, as Llama 2 had it. In Llama 3 each file has the "
        "rows of some tokens.":
            _join(("wo", "w2", "tok_embeddings"), ("wq", "wk", "wv", "w1", "w3", "output")),
        "the output matrix is joined by columns. Each file has the rows of some tokens, as of the "
        "embedding table.":
            _join(("wo", "w2", "output"), ("wq", "wk", "wv", "w1", "w3", "tok_embeddings")),
        "the slices are added up. Their products with x would be; the slices stand side by side.":
            lambda name, parts: sum(parts) if parts[0].dim() == 2 else parts[0],
        "the slices are in the wrong order: file 00 comes first.": reverse,
        "rows (or columns) are taken from the files in turn. Each file has a run of neighbours.":
            interleaved,
        "this is the slice of the first file.": lambda name, parts: parts[0],
    }  # fmt: skip
    inner = [("attention.wq", (3, 4)), ("attention.wo", (6, 2)), ("feed_forward.w1", (5, 4)),
             ("feed_forward.w2", (3, 7)), ("attention_norm", (4,)), ("attention.wv", (2, 6)),
             ("feed_forward.w3", (3, 5))]  # fmt: skip
    named = [(f"layers.{i}.{name}.weight", size) for i, (name, size) in enumerate(inner)]
    named += [("tok_embeddings.weight", (4, 3)), ("norm.weight", (6,)), ("output.weight", (5, 2))]
    cases = []
    for seed, (name, size) in enumerate(named):
        parts = _drawn(seed, *[size] * (2 + seed % 2))
        cases.append((name, parts if len(size) == 2 else [parts[0]] * len(parts)))
    examine(answer, _join(("wo", "w2")), cases, mistakes)


# --- 9.3: where a tensor stands -------------------------------------------------------------------


def _safetensors(tensors, pad=0, metadata=None):
    """{name: (dtype, shape, data)} -> a small file's bytes."""
    ends = list(itertools.accumulate((len(data) for _, _, data in tensors.values()), initial=0))
    table = {"__metadata__": metadata} if metadata else {}
    for (name, (kind, shape, _)), span in zip(
        tensors.items(), itertools.pairwise(ends), strict=True
    ):
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": list(span)}
    header = json.dumps(table).encode() + b" " * pad
    data = b"".join(data for _, _, data in tensors.values())
    return len(header).to_bytes(8, "little") + header + data


def tensor_place(answer):
    """Where a tensor's bytes are in a .safetensors: (the file's bytes, name) -> (start, stop)."""

    def parts(data):
        length = int.from_bytes(data[:8], "little")
        return length, json.loads(data[8 : 8 + length])

    def at(base):
        """The function that counts from `base(length)`."""

        def place(data, name):
            length, table = parts(data)
            start, stop = table[name]["data_offsets"]
            return base(length) + start, base(length) + stop

        return place

    right = at(lambda length: 8 + length)

    def with_size(data, name):
        start, stop = right(data, name)
        return start, stop - start

    def one_short(data, name):
        start, stop = right(data, name)
        return start, stop - 1

    def measured_anew(data, name):
        _, table = parts(data)
        return at(lambda _: 8 + len(json.dumps(table)))(data, name)

    first = {"a.weight": ("F32", [3], bytes(12)), "b.weight": ("BF16", [2, 5], bytes(20))}
    second = {
        "x": ("F16", [7], bytes(14)),
        "y": ("F32", [1, 2], bytes(8)),
        "z": ("BF16", [1], b"ab"),
    }
    cases = [
        (_safetensors(first), "b.weight"),
        (_safetensors(second, pad=5, metadata={"format": "pt"}), "y"),
        (_safetensors(second, pad=3), "z"),
    ]
    mistakes = {
        "these are the header's own numbers. They count from the end of the header, not from the "
        "beginning of the file.": at(lambda length: 0),
        "the header is passed over, but not the 8 bytes before it that say how long it is.":
            at(lambda length: length),
        "the 8 bytes are passed over, but not the header behind them.": at(lambda length: 8),
        "the second number should be where the tensor stops, as in data[start:stop]; this is how "
        "many bytes it has.": with_size,
        "the last byte is left out: the second number is one past the end, as in data[start:stop].":
            one_short,
        "the header's length is taken from its content. It may end with spaces: the first 8 bytes "
        "say how long it is.": measured_anew,
        "the result is the tensor's bytes. Wanted is where they are, (start, stop).":
            lambda data, name: data[slice(*right(data, name))],
    }  # fmt: skip
    examine(answer, right, cases, mistakes)


# --- 9.4: from Hugging Face's rows to Meta's ------------------------------------------------------


def unpermute(answer):
    """The rows of wq or wk, Hugging Face's order to Meta's: ([heads * H, D], H) -> the same."""

    def right(w, H):
        return w.unflatten(0, (-1, 2, H // 2)).transpose(1, 2).flatten(0, 2)

    def whole(w, H):
        return w.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)

    cases = [
        (*_drawn(seed, (heads * 2 * P, D)), 2 * P)
        for seed, heads, P, D in ((1, 2, 3, 4), (2, 4, 5, 8), (3, 6, 4, 10))
    ]
    mistakes = {
        "that is the way there, from Meta's order to Hugging Face's (exercise 3.4). Row 1 of a "
        "head should be its row P from before.":
            lambda w, H: w.unflatten(0, (-1, H // 2, 2)).transpose(1, 2).flatten(0, 2),
        "the heads are mixed: the halves are those of the whole matrix. Each head has its own.":
            whole,
        "H is read as the number of heads. It is the size of one.":
            lambda w, H: w.unflatten(0, (H, 2, -1)).transpose(1, 2).flatten(0, 2),
        "the second half comes first in each pair.":
            lambda w, H: w.unflatten(0, (-1, 2, H // 2)).flip(1).transpose(1, 2).flatten(0, 2),
        "the columns are reordered. A head's numbers come from the rows of wq.":
            lambda w, H: torch.stack(w.chunk(2, dim=1), dim=2).flatten(1),
        "the rows are as they were.": lambda w, H: w,
        "the order of heads and rows is swapped too. Head 0 keeps the first H rows.":
            lambda w, H: w.unflatten(0, (-1, 2, H // 2)).permute(2, 1, 0, 3).flatten(0, 2),
        "the result has three or more dimensions. Flatten the first ones: [heads * H, D].":
            lambda w, H: right(w, H).unflatten(0, (-1, H)),
    }  # fmt: skip
    examine(answer, right, cases, mistakes)


# --- 9.5: a token of tokenizer.json ---------------------------------------------------------------


def token_bytes(answer):
    """The bytes of a token of tokenizer.json: its text there -> bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in shown]
    byte_of = {chr(byte): byte for byte in shown} | {
        chr(256 + i): byte for i, byte in enumerate(rest)
    }

    def right(text):
        return bytes(byte_of[sign] for sign in text)

    def minus_256(text):
        return bytes(ord(sign) % 256 for sign in text)

    words = [" life", "42", "\n\n", "é", " naïve", "🦙", "\t\x00", "\xad\u00ad", "语", "~\x7f"]
    sign_of = {byte: sign for sign, byte in byte_of.items()}
    cases = [("".join(sign_of[byte] for byte in word.encode()),) for word in words]
    cases.append((sign_of[0xAD] + sign_of[0xFF],))  # no text at all
    mistakes = {
        "these are the UTF-8 bytes of the letters as they stand there. But each letter stands for "
        "one byte: Ġ for the space.": lambda text: text.encode(),
        "Ġ has become a space, and the other letters have kept their UTF-8 bytes. Each letter "
        "stands for one byte; Ċ is the newline.": lambda text: text.replace("Ġ", " ").encode(),
        "letters from 256 on are taken modulo 256. They stand for the bytes that are left over, in "
        "order: 256 for byte 0, 288 (Ġ) for byte 32, 289 for byte 127.": minus_256,
        "Ġ and Ċ are right, and the other letters have kept their UTF-8 bytes. Each letter stands "
        "for one byte, è for byte 232 and so on.":
            lambda text: text.replace("Ġ", " ").replace("Ċ", "\n").encode(),
        "that is the way there: every byte of the text written as a letter. Read the letters as "
        "bytes.": lambda text: "".join(sign_of[byte] for byte in text.encode()),
        "the result is text. Wanted are the bytes.":
            lambda text: right(text).decode(errors="replace"),
        "the result is a list of numbers: `bytes(...)` makes bytes of it.":
            lambda text: list(right(text)),
    }  # fmt: skip
    examine(answer, right, cases, mistakes)
