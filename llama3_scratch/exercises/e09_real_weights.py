"""The exercises of notebook 09: bytes, slices of files, a tensor's place, rows, letters."""

import itertools
import json
import math

import torch

from llama3_scratch.config import PRESETS, Config, weight_shapes
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    loops,
    of_each,
)

# --- How many bytes -------------------------------------------------------------------------------


def _n_bytes_cases():
    small = Config(8, 2, 2, 1, 5, 3, 1e-5, 100.0)
    plain = Config(60, 4, 6, 2, 101, 7, 1e-5, 10000.0)
    tied = Config(72, 3, 6, 3, 97, 11, 1e-5, 10000.0, tied_output=True)
    wide = Config(80, 5, 10, 2, 67, 13, 1e-5, 10000.0, 1.2)
    return {
        "a small model (D 8, L 2, N 2, K 1, V 5), 3 positions, 2 bytes each": (small, 3, 2),
        "a model with D 60, 33 positions, 4 bytes each": (plain, 33, 4),
        "a model with a tied output, 50 positions, 1 byte each": (tied, 50, 1),
        "a model with D 80, 21 positions, 2 bytes each": (wide, 21, 2),
        "Llama-3.2-1B, one position, 8 bytes each": (PRESETS["Llama-3.2-1B"], 1, 8),
    }


def _cache(c, positions, heads=None, layers=None, both=2):
    return both * (layers or c.n_layers) * (heads or c.n_kv_heads) * c.head_dim * positions


def _table(c):
    return c.vocab_size * c.dim


def _n_bytes(c, positions, size):
    return (c.n_parameters + _cache(c, positions)) * size


n_bytes = Exercise(
    "Config, positions of one text, bytes per number -> the bytes of weights and cache together.",
    right=_n_bytes,
    cases=_n_bytes_cases,
    mistakes=[
        (lambda c, n, size: c.n_parameters * size,
         "the cache is missing. Every position keeps a key and a value, in every layer."),
        (lambda c, n, size: (
            sum(math.prod(shape) for shape in weight_shapes(c).values()) + _cache(c, n)) * size,
         "a tied output matrix is the embedding table itself, and here it is counted twice. "
         "`config.n_parameters` counts it once."),
        (lambda c, n, size: (c.n_parameters - c.tied_output * _table(c) + _cache(c, n)) * size,
         "the table of a model with a tied output is missing. `config.n_parameters` counts it once "
         "already."),
        (lambda c, n, size: (c.n_parameters + _cache(c, n, heads=c.n_heads)) * size,
         "the cache has a key and a value for every query head. Only the K key/value heads are "
         "cached."),
        (lambda c, n, size: (c.n_parameters + _cache(c, n, both=1)) * size,
         "the cache has keys or values, not both: a factor of 2 is missing."),
        (lambda c, n, size: (c.n_parameters + _cache(c, n, layers=1)) * size,
         "the cache is that of one layer. Every layer has its own."),
        (lambda c, n, size: (c.n_parameters + _cache(c, n, heads=1)) * size,
         "the cache is that of one key/value head. There are K of them, `config.n_kv_heads`."),
        (lambda c, n, size: (c.n_parameters + _cache(c, 1)) * size,
         "the cache is that of one position."),
        (lambda c, n, size: c.n_parameters * size + _cache(c, n),
         "the cache is counted in numbers and the weights in bytes. In both, a number takes `size` "
         "bytes."),
        (lambda c, n, size: c.n_parameters + _cache(c, n) * size,
         "the weights are counted in numbers and the cache in bytes. In both, a number takes "
         "`size` bytes."),
        (lambda c, n, size: c.n_parameters + _cache(c, n),
         "these are numbers, not bytes: each takes `size` bytes."),
        (lambda c, n, size: _n_bytes(c, n, 2),
         "2 bytes are typed in. Use the argument `size`."),
        (lambda c, n, size: 8 * _n_bytes(c, n, size),
         "these are bits. The question is about bytes, and `size` is in bytes already."),
        (lambda c, n, size: _n_bytes(c, n, size) / 1e9,
         "these are gigabytes. The question is about bytes."),
        (lambda c, n, size: _n_bytes(c, n, size) / 2**30,
         "these are GiB, 2**30 bytes each. The question is about bytes."),
        (lambda c, n, size: _n_bytes(c, c.context_length, size),
         "the cache is that of the longest text, `config.context_length`. The argument `positions` "
         "says how long this one is."),
        (lambda c, n, size: (c.n_parameters + _cache(c, n) // c.head_dim) * size,
         "a key or value is counted as one number. It is a vector of H, `config.head_dim`."),
        (lambda c, n, size: (c.n_parameters + _cache(c, n) * c.n_heads) * size,
         "`dim` is as wide as all N query heads. One key has `head_dim` numbers."),
        (lambda c, n, size: _cache(c, n) * size,
         "the weights are missing; this is the cache."),
    ],
    properties=[
        (answer_property(lambda answer, c, n, size: agree(
            answer(c, n, 6 * size), 6 * answer(c, n, size))),
         "numbers of 6 times the size do not take 6 times as many bytes. All numbers, in the "
         "weights and in the cache, take `size` bytes each."),
        (answer_property(lambda answer, c, n, size: agree(
            answer(c, 0, size), c.n_parameters * size)),
         "what the weights take is not right: with 0 positions the result should be "
         "`config.n_parameters` times `size`."),
        (answer_property(lambda answer, c, n, size: agree(
            answer(c, n + 1000, size) - answer(c, n, size), 1000 * _cache(c, 1) * size)),
         "what a position takes is not right: a key and a value, of H numbers each, for each of "
         "the K key/value heads, in each of the L layers."),
    ],
)  # fmt: skip


# --- The slices of several files ------------------------------------------------------------------

_BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "tok_embeddings", "output")
_BY_COLUMNS = ("wo", "w2")


def _slices_cases():
    named = [
        ("attention.wo", 3, (6, 2)), ("attention.wq", 2, (3, 4)), ("feed_forward.w1", 2, (5, 4)),
        ("feed_forward.w2", 4, (3, 7)), ("attention_norm", 2, (4,)), ("attention.wv", 3, (2, 6)),
        ("feed_forward.w3", 3, (3, 5)), ("ffn_norm", 8, (5,)), ("attention.wk", 4, (2, 2)),
    ]  # fmt: skip
    named = [(f"layers.{i}.{name}.weight", *rest) for i, (name, *rest) in enumerate(named)]
    named += [("tok_embeddings.weight", 3, (4, 3)), ("norm.weight", 2, (6,))]
    named += [("output.weight", 2, (5, 2)), ("layers.31.feed_forward.w2.weight", 2, (4, 4))]
    named += [("layers.10.attention.wo.weight", 1, (3, 2))]
    first = "layers.0.attention.wo.weight"
    cases = {f"2 slices of {first}": (first, [*torch.arange(8.0).view(2, 2, 2)])}
    for seed, (name, n, size) in enumerate(named):
        parts = drawn(seed, *[size] * n) if len(size) == 2 else drawn(seed, size) * n
        cases[f"{n} slice{'s' * (n > 1)} of {name}, {list(size)} each"] = name, parts
    return cases


def _joining(columns=_BY_COLUMNS, rows=_BY_ROWS):
    """The answer that joins these by columns, those by rows, and takes the others once."""

    def join(name, parts):
        kind = name.split(".")[-2]
        if kind in columns:
            return torch.cat(parts, dim=1)
        return torch.cat(parts, dim=0) if kind in rows else parts[0]

    return join


_join = _joining()


def _by_columns(*moved):
    """The answer that joins these by columns, too."""
    return _joining((*_BY_COLUMNS, *moved), [kind for kind in _BY_ROWS if kind not in moved])


def _by_rows(moved):
    """The answer that joins this by rows, too."""
    return _joining([kind for kind in _BY_COLUMNS if kind != moved], (*_BY_ROWS, moved))


def _with_norms(change):
    return lambda name, parts: _join(name, parts) if parts[0].dim() == 2 else change(parts)


def _in_turn(name, parts):
    if parts[0].dim() == 1:
        return parts[0]
    dim = 1 if name.split(".")[-2] in _BY_COLUMNS else 0
    return torch.stack(parts, dim=dim + 1).flatten(dim, dim + 1)


def _first_comes_first(found, name, parts):
    return agree(found[tuple(slice(n) for n in parts[0].shape)], parts[0])


join_shards = Exercise(
    "A tensor's name in Meta's checkpoint, the list of its slices in the order of the files -> the "
    "whole tensor.",
    right=_join,
    cases=_slices_cases,
    mistakes=[
        (_joining((), (*_BY_ROWS, *_BY_COLUMNS)),
         "every matrix is joined by rows. Those of wo and w2 are split by columns."),
        (_joining((*_BY_ROWS, *_BY_COLUMNS), ()),
         "every matrix is joined by columns. Only wo and w2 are split by columns; the others are "
         "split by rows."),
        (_joining(_BY_ROWS, _BY_COLUMNS),
         "rows and columns are exchanged: wo and w2 are joined by columns, the others by rows."),
        (_with_norms(torch.cat),
         "the norms are joined as well. Every file has the whole vector: take one."),
        (_with_norms(sum),
         "the norms are added up. Every file has the whole vector: take one."),
        (_with_norms(torch.stack),
         "the norms are stacked. Every file has the whole vector: take one."),
        (_by_rows("wo"),
         "wo is joined by rows. It is split by columns: each column belongs to a head, as each row "
         "of wq does."),
        (_by_rows("w2"),
         "w2 is joined by rows. It is split by columns, which belong to the rows of w1 and w3."),
        (_by_columns("w1", "w3"),
         "w1 and w3 are joined by columns. Each file has some of their rows."),
        (_by_columns("wq", "wk", "wv"),
         "wq, wk and wv are joined by columns. Each file has some of their rows: those of its "
         "heads."),
        (_by_columns("tok_embeddings", "output"),
         "the embedding table and the output matrix are joined by columns. Each file has the rows "
         "of some tokens."),
        (_by_columns("tok_embeddings"),
         "the embedding table is joined by columns, as in Llama 2. In Llama 3 each file has the "
         "rows of some tokens."),
        (_by_columns("output"),
         "the output matrix is joined by columns. Each file has the rows of some tokens, as with "
         "the embedding table."),
        (lambda name, parts: sum(parts) if parts[0].dim() == 2 else parts[0],
         "the slices are added up. Their products with x would be; the slices stand side by side."),
        (lambda name, parts: _join(name, parts[::-1]),
         "the slices are in the wrong order: file 00 comes first."),
        (_in_turn,
         "rows (or columns) are taken from the files in turn. Each file has a run of neighbours."),
        (lambda name, parts: parts[0],
         "this is the slice of the first file."),
        (lambda name, parts: _join(name, [parts[0], parts[-1]]),
         "only the first and the last slice are joined. There may be more than two."),
        (lambda name, parts: _join(name, parts[:2]),
         "only the first two slices are joined. There may be more."),
    ],
    properties=[
        (of_each(lambda found, name, parts: parts[0].dim() == 2 or agree(found, parts[0])),
         "a norm's weight is not what each file has: the whole vector. Take that of one file."),
        (of_each(_first_comes_first),
         "the first file's slice is not at the beginning, its rows and columns as they were. Join "
         "the slices in the order of the files."),
        (of_each(lambda found, name, parts: parts[0].dim() == 1 or agree(
            found.flatten().sort().values, torch.cat(parts).flatten().sort().values)),
         "some numbers are missing or there twice. Every number of every slice has one place in "
         "the whole tensor."),
    ],
)  # fmt: skip


# --- The place of a tensor ------------------------------------------------------------------------


def _safetensors(tensors, stored=None, pad=0, metadata=None):
    """{name: (dtype, shape, data)}, the names in the order of their data -> a file's bytes."""
    stored = stored or list(tensors)
    ends = itertools.accumulate((len(tensors[name][2]) for name in stored), initial=0)
    spans = dict(zip(stored, itertools.pairwise(ends), strict=True))
    table = {"__metadata__": metadata} if metadata else {}
    for name, (kind, shape, _) in tensors.items():
        table[name] = {"dtype": kind, "shape": shape, "data_offsets": list(spans[name])}
    header = json.dumps(table, ensure_ascii=False).encode() + b" " * pad
    return len(header).to_bytes(8, "little") + header + b"".join(tensors[n][2] for n in stored)


def _place_cases():
    one = {"w": ("F32", [1], b"\x00\x00\x80?")}
    two = {"a.weight": ("F32", [3], bytes(12)), "b.weight": ("BF16", [2, 5], b"}}" * 10)}
    three = {"x": ("F16", [7], bytes(14)), "größe": ("F32", [1, 2], bytes(8)),
             "z": ("BF16", [1], b"ab")}  # fmt: skip
    padded = _safetensors(three, pad=5, metadata={"format": "pt"})
    return {
        "a file with one tensor": (_safetensors(one), "w"),
        "the second of two tensors": (_safetensors(two), "b.weight"),
        "the first of two tensors": (_safetensors(two), "a.weight"),
        "a tensor in the middle, spaces after the header": (padded, "größe"),
        "the last of three tensors, a long header": (_safetensors(three, pad=70_000), "z"),
        "a file whose header has another order than its data": (
            _safetensors(three, ["z", "größe", "x"], pad=3), "größe"),
    }  # fmt: skip


def _header(data):
    length = int.from_bytes(data[:8], "little")
    return length, json.loads(data[8 : 8 + length])


def _counted_from(base):
    """The answer that counts from `base(length of the header)`."""

    def place(data, name):
        length, table = _header(data)
        start, stop = table[name]["data_offsets"]
        return base(length) + start, base(length) + stop

    return place


_place = _counted_from(lambda length: 8 + length)


def _and_size(data, name):
    start, stop = _place(data, name)
    return start, stop - start


def _last_byte_left_out(data, name):
    start, stop = _place(data, name)
    return start, stop - 1


def _header_measured_anew(data, name):
    _, table = _header(data)
    length = len(json.dumps(table, ensure_ascii=False).encode())
    return _counted_from(lambda _: 8 + length)(data, name)


def _in_the_headers_order(data, name):
    length, table = _header(data)
    start = 8 + length
    for key, entry in table.items():
        size = entry["data_offsets"][1] - entry["data_offsets"][0] if "dtype" in entry else 0
        if key == name:
            return start, start + size
        start += size


def _size_is_right(found, data, name):
    start, stop = _header(data)[1][name]["data_offsets"]
    return found[1] - found[0] == stop - start


def _moves_with_the_header(answer, data, name):
    """Whether 9 spaces after the header move both numbers by 9."""
    length, _ = _header(data)
    body = data[8 : 8 + length] + b" " * 9 + data[8 + length :]
    moved = answer((length + 9).to_bytes(8, "little") + body, name)
    return [a - b for a, b in zip(moved, answer(data, name), strict=True)] == [9, 9]


tensor_place = Exercise(
    "The bytes of a .safetensors file, a name -> (start, stop): data[start:stop] is that tensor.",
    right=_place,
    cases=_place_cases,
    mistakes=[
        (_counted_from(lambda length: 0),
         "these are the header's own numbers. They count from the end of the header, not from the "
         "beginning of the file."),
        (_counted_from(lambda length: length),
         "the header is skipped, but not the 8 bytes before it that say how long it is."),
        (_counted_from(lambda length: 8),
         "the 8 bytes are skipped, but not the header after them."),
        (_and_size,
         "the second number should be where the tensor stops, as in data[start:stop]; this is how "
         "many bytes it has."),
        (_last_byte_left_out,
         "the last byte is left out: the second number is one past the end, as in "
         "data[start:stop]."),
        (_header_measured_anew,
         "the header's length is taken from its content. It may end with spaces: the first 8 bytes "
         "say how long it is."),
        (_in_the_headers_order,
         "the sizes are added up in the order of the header. The data may have another order: "
         "`data_offsets` says where each tensor is."),
        (lambda data, name: data[slice(*_place(data, name))],
         "these are the tensor's bytes. Return where they are, (start, stop)."),
    ],
    properties=[
        (of_each(_size_is_right),
         "stop - start is not the number of bytes that the tensor has. The two `data_offsets` are "
         "a start and a stop; both need the same number added."),
        (answer_property(_moves_with_the_header),
         "with a header that is 9 bytes longer, both numbers should be larger by 9. The first 8 "
         "bytes of the file say how long the header is."),
        (of_each(lambda found, data, name: 0 <= found[0] - _header(data)[0] - 8 <= len(data)),
         "the result is a place before the data. They begin after the 8 bytes and the header."),
    ],
)  # fmt: skip


# --- From Hugging Face's rows to Meta's -----------------------------------------------------------


def _rows_cases():
    numbered = torch.arange(12.0).view(12, 1)  # two heads, P = 3
    sizes = ((2, 3, 4), (4, 5, 8), (6, 4, 10), (4, 1, 2))  # heads are even: H read as their number
    drawn_ones = [(*drawn(i, (heads * 2 * P, D)), 2 * P) for i, (heads, P, D) in enumerate(sizes)]
    return {
        "rows 0 to 11 of two heads": (numbered, 6),
        **{f"weight {list(weight.shape)} and H = {H}": (weight, H) for weight, H in drawn_ones},
    }


def _in_metas_order(weight, H):
    return weight.unflatten(0, (-1, 2, H // 2)).transpose(1, 2).flatten(0, 2)


def _halves(weight, H):
    return weight.unflatten(0, (-1, 2, H // 2))  # [heads, 2, P, D]


def _sorted_rows(weight):
    return weight[weight[:, 0].argsort()]


def _own_rows(found, weight, H):
    """Whether each head still has its own rows, in any order."""
    pairs = zip(found.split(H), weight.split(H), strict=True)
    return all(agree(_sorted_rows(mine), _sorted_rows(head)) for mine, head in pairs)


unpermute = Exercise(
    "wq or wk [heads * H, D] in Hugging Face's order of rows, H -> the same in Meta's order.",
    right=_in_metas_order,
    cases=_rows_cases,
    mistakes=[
        (lambda w, H: w.unflatten(0, (-1, H // 2, 2)).transpose(1, 2).flatten(0, 2),
         "this is the other direction, from Meta's order to Hugging Face's (exercise 3.3). Row 1 "
         "of a head should be what was its row P."),
        (lambda w, H: w.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1),
         "the heads are mixed: the halves are those of the whole matrix. Each head has its own."),
        (lambda w, H: w.unflatten(0, (H, 2, -1)).transpose(1, 2).flatten(0, 2),
         "H is read as the number of heads. It is the size of one."),
        (lambda w, H: _halves(w, H).flip(1).transpose(1, 2).flatten(0, 2),
         "the second half comes first in each pair."),
        (lambda w, H: torch.stack(w.chunk(2, dim=1), dim=2).flatten(1),
         "the columns are reordered. A head's numbers come from the rows of wq."),
        (lambda w, H: w,
         "the rows are as they were."),
        (lambda w, H: _halves(w, H).permute(2, 1, 0, 3).flatten(0, 2),
         "the order of heads and rows is exchanged too. Head 0 keeps the first H rows."),
        (lambda w, H: _in_metas_order(w, H).unflatten(0, (-1, H)),
         "the result has three or more dimensions. Flatten the first ones: [heads * H, D]."),
    ],
    properties=[
        (of_each(lambda found, w, H: agree(_sorted_rows(found), _sorted_rows(w))),
         "the rows are not those of the matrix: each of them, as it is, has one place in the "
         "result."),
        (of_each(_own_rows),
         "a head has rows of another. Rows H * n to H * n + H - 1 are head n, before and after."),
        (of_each(lambda found, w, H: agree(found[::H], w[::H])),
         "the first row of a head should stay its first row: it is number 0 of the first half."),
        (of_each(lambda found, w, H: agree(found[1::H], w[H // 2 :: H])),
         "row 1 of a head should be what was its row P, the first of its second half: the two "
         "halves alternate."),
    ],
    but=[
        (loops,
         "it has a loop. unflatten, transpose and flatten move all rows at once."),
    ],
)  # fmt: skip


# --- A token of tokenizer.json --------------------------------------------------------------------

_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_REST = [byte for byte in range(256) if byte not in _SHOWN]
_BYTE_OF = {chr(byte): byte for byte in _SHOWN} | {chr(256 + i): b for i, b in enumerate(_REST)}
_LETTER_OF = {byte: letter for letter, byte in _BYTE_OF.items()}


def _spelled(data):
    return "".join(_LETTER_OF[byte] for byte in data)


def _bytes_cases():
    words = [" life", "42", "\n\n", "é", " naïve", "🦙", "\t\x00", "\xad\u00ad", "语", "~\x7f"]
    words += ["  a b ", "\r\n\t"]
    spelled = [_spelled(word.encode()) for word in words] + [_spelled(b"\xad\xff")]
    return {repr(text): (text,) for text in spelled} | {
        "all 256 letters": (_spelled(range(256)),),
    }


def _token_bytes(text):
    return bytes(_BYTE_OF[letter] for letter in text)


def _right_where(chosen):
    """A property: the bytes of the letters with such numbers are right."""
    return of_each(lambda found, text: all(
        byte == right
        for letter, byte, right in zip(text, found, _token_bytes(text), strict=True)
        if chosen(ord(letter))))  # fmt: skip


token_bytes = Exercise(
    "A token as tokenizer.json spells it, a str -> its bytes, one for each letter.",
    right=_token_bytes,
    cases=_bytes_cases,
    mistakes=[
        (lambda text: text.encode(),
         "these are the UTF-8 bytes of the letters as they stand there. But each letter stands for "
         "one byte, for example Ġ for the space."),
        (lambda text: text.replace("Ġ", " ").encode(),
         "Ġ has become a space, and the other letters have their UTF-8 bytes. Each letter stands "
         "for one byte; Ċ is the newline."),
        (lambda text: bytes(ord(letter) % 256 for letter in text),
         "letters from 256 on are taken modulo 256. They stand for the bytes that are left over, "
         "in order: 256 for byte 0, 288 (Ġ) for byte 32, 289 for byte 127."),
        (lambda text: text.replace("Ġ", " ").replace("Ċ", "\n").encode(),
         "Ġ and Ċ are right, and the other letters have their UTF-8 bytes. Each letter stands for "
         "one byte, for example è for byte 232."),
        (lambda text: _spelled(text.encode()),
         "this is the other direction: every byte of the text written as a letter. Read the "
         "letters as bytes."),
        (lambda text: _token_bytes(text).decode(errors="replace"),
         "the result is text. Return the bytes."),
        (lambda text: list(_token_bytes(text)),
         "the result is a list of numbers: `bytes(...)` makes bytes of it."),
    ],
    properties=[
        (of_each(lambda found, text: len(found) == len(text)),
         "the number of bytes is not the number of letters. Each letter stands for one byte."),
        (_right_where(lambda number: number < 256),
         "a letter below 256 has a wrong byte. There the number of the letter, `ord(letter)`, is "
         "the byte."),
        (_right_where(lambda number: number >= 256),
         "a letter from 256 on has a wrong byte. These letters stand for the bytes that are not "
         "printable, in order: 0 to 32, 127 to 160, and 173."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
