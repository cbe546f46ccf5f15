"""The exercises of notebook 11: a tensor by hand, slices, letters, GGUF's values, a flipped bit."""

import itertools
import json
import struct
import zlib

import torch

from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
)

# --- A tensor from a safetensors file -------------------------------------------------------------

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _tensor(seed, kind, *shape):
    return drawn(seed, shape)[0].to("cpu", _TYPES[kind])


def _safetensors(tensors, stored=None, pad=0, metadata=None):
    """{name: tensor}, the names in the order of their data -> a file's bytes."""
    stored = stored or list(tensors)
    raw = {name: x.contiguous().view(torch.uint8).numpy().tobytes() for name, x in tensors.items()}
    ends = itertools.accumulate((len(raw[name]) for name in stored), initial=0)
    spans = dict(zip(stored, itertools.pairwise(ends), strict=True))
    kinds = {dtype: kind for kind, dtype in _TYPES.items()}
    table = {"__metadata__": metadata} if metadata else {}
    for name, x in tensors.items():
        span = {"data_offsets": list(spans[name])}
        table[name] = {"dtype": kinds[x.dtype], "shape": list(x.shape)} | span
    header = json.dumps(table, ensure_ascii=False).encode() + b" " * pad
    return len(header).to_bytes(8, "little") + header + b"".join(raw[name] for name in stored)


def _tensor_cases():
    one = {"w": torch.tensor([1.0, -2.0], device="cpu")}
    two = {"a.weight": _tensor(1, "F32", 3), "b.weight": _tensor(2, "BF16", 2, 5)}
    three = {"x": _tensor(3, "F16", 4, 7), "größe": _tensor(4, "F32", 3, 2),
             "z": _tensor(5, "BF16", 6)}  # fmt: skip
    padded = _safetensors(three, pad=5, metadata={"format": "pt"})
    return {
        "a file with one tensor": (_safetensors(one), "w"),
        "the second of two tensors, in BF16": (_safetensors(two), "b.weight"),
        "the first of two tensors": (_safetensors(two), "a.weight"),
        "a tensor in the middle, spaces after the header": (padded, "größe"),
        "a matrix in F16": (padded, "x"),
        "the last of three tensors, a long header": (_safetensors(three, pad=70_000), "z"),
        "a file whose header has another order than its data": (
            _safetensors(three, ["z", "größe", "x"], pad=3), "größe"),
    }  # fmt: skip


def _header(data):
    length = int.from_bytes(data[:8], "little")
    return length, json.loads(data[8 : 8 + length])


def _made(data, start, entry, dtype=None):
    dtype = dtype or _TYPES[entry["dtype"]]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    raw = data[start : start + size].ljust(size, b"\0")  # a wrong place may be too near the end
    return torch.frombuffer(bytearray(raw), dtype=dtype).view(entry["shape"])


def _counted_from(base):
    """The answer that counts from `base(length of the header)`."""

    def read(data, name):
        length, table = _header(data)
        return _made(data, base(length) + table[name]["data_offsets"][0], table[name])

    return read


_read_tensor = _counted_from(lambda length: 8 + length)


def _header_measured_anew(data, name):
    _, table = _header(data)
    length = len(json.dumps(table, ensure_ascii=False).encode())
    return _counted_from(lambda _: 8 + length)(data, name)


def _in_the_headers_order(data, name):
    length, table = _header(data)
    start = 8 + length
    for key, entry in table.items():
        if key == name:
            return _made(data, start, entry)
        start += entry["data_offsets"][1] - entry["data_offsets"][0] if "dtype" in entry else 0


def _half_for_bfloat16(data, name):
    right = _read_tensor(data, name)
    return right.view(torch.float16) if right.dtype == torch.bfloat16 else right


def _moves_with_the_header(answer, data, name):
    """Whether 16 spaces after the header change nothing."""
    length, _ = _header(data)
    body = data[8 : 8 + length] + b" " * 16 + data[8 + length :]
    return agree(answer((length + 16).to_bytes(8, "little") + body, name), answer(data, name))


read_tensor = Exercise(
    "The bytes of a .safetensors file, a name -> that tensor, in its type and shape.",
    right=_read_tensor,
    cases=_tensor_cases,
    mistakes=[
        (_counted_from(lambda length: 0),
         "`data_offsets` count from the end of the header, not from the beginning of the file."),
        (_counted_from(lambda length: length),
         "the header is skipped, but not the 8 bytes before it that say how long it is."),
        (_counted_from(lambda length: 8),
         "the 8 bytes are skipped, but not the header after them."),
        (_header_measured_anew,
         "the header's length is taken from its content. It may end with spaces: the first 8 bytes "
         "say how long it is."),
        (_in_the_headers_order,
         "the sizes are added up in the order of the header. The data may have another order: "
         "`data_offsets` says where each tensor is."),
        (_half_for_bfloat16,
         "BF16 is read as float16. Both have 16 bits; BF16 is torch.bfloat16."),
        (lambda data, name: _read_tensor(data, name).float(),
         "the numbers are right and have become float32. Leave the tensor in its own type."),
        (lambda data, name: _read_tensor(data, name).flatten(),
         "the numbers are right and have no shape: `shape` in the header says it."),
        (lambda data, name: _read_tensor(data, name).contiguous().view(torch.uint8).flatten(),
         "these are the tensor's bytes. `dtype` in the header says how many of them are a number."),
    ],
    properties=[
        (of_each(lambda found, data, name: found.numel() == _read_tensor(data, name).numel()),
         "the result has another number of entries than `shape` says."),
        (answer_property(_moves_with_the_header),
         "with a header that is 16 bytes longer, the result is another. The first 8 bytes of the "
         "file say how long the header is; the data begin after it."),
    ],
    hints=(
        "Three places in the file: 0, 8, and where the header ends. From which of them do "
        "`data_offsets` count?",
        "`torch.frombuffer(bytearray(...), dtype=...)` makes a flat tensor from bytes, and "
        "`.view(shape)` gives it its shape. A dictionary with three entries leads from the "
        "header's names of types to torch's.",
    ),
    dtype=True,
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
    hints=(
        "Which GPU needs which numbers? Head 0 comes from the first rows of wq. What of wo reads "
        "the output of head 0?",
        "`torch.cat(parts, dim=...)`. Three kinds of tensors: those that are cut into rows, those "
        "that are cut into columns, and those of one dimension, of which every file has a copy.",
    ),
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
    hints=(
        "Make the table {letter: byte} first. Which bytes stand for themselves is a list of three "
        "ranges; all others get the letters from 256 on, in order.",
        "`chr` leads from a number to a letter. A counter runs from 256 on, and only bytes that do "
        "not stand for themselves move it.",
    ),
)  # fmt: skip


# --- The values of a GGUF file --------------------------------------------------------------------

_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip


def _written(kind, value):
    """A value as GGUF stores it; an array is (kind of its entries, entries)."""
    if kind == _STRING:
        return struct.pack("<Q", len(value.encode())) + value.encode()
    if kind == _ARRAY:
        entries = b"".join(_written(value[0], each) for each in value[1])
        return struct.pack("<IQ", value[0], len(value[1])) + entries
    return struct.pack(f"<{_FORMATS[kind]}", value)


def _value_cases():
    words = _ARRAY, (_STRING, ["<|begin_of_text|>", "Ġthe", "naïve", ""])
    given = {
        "a u32 at the beginning": (b"", 4, 70_000),
        "a string after 3 other bytes": (b"abc", _STRING, "general.architecture"),
        "a string of 3 letters and 6 bytes": (b"", _STRING, "Ċ語"),
        "a float after 5 other bytes": (b"abcde", 6, 0.25),
        "a bool": (b"\0", 7, True),
        "a negative i64": (b"", 11, -(2**40)),
        "an array of 4 strings": (b"12345", *words),
        "an array of 3 numbers": (b"", _ARRAY, (5, [1, -2, 3])),
        "an array without entries": (b"ab", _ARRAY, (_STRING, [])),
        "an array of arrays": (b"", _ARRAY, (_ARRAY, [(2, [1, 2]), (0, []), (4, [7])])),
    }
    end = b"\2\0\0\0\0\0\0\0more"
    return {
        name: (before + _written(kind, value) + end, len(before), kind)
        for name, (before, kind, value) in given.items()
    }


def _text(raw):
    return raw.decode(errors="replace")


def _reading(length="<Q", count="<Q", letters=False, order="<", text=_text):
    """The answer that reads values with these faults."""

    def number(data, at, form):
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)

    def read(data, at, kind):
        if kind == _STRING:
            n, at = number(data, at, length)
            if letters:
                short = data[at:].decode(errors="ignore")[:n]
                return short, at + len(short)
            return text(data[at : at + n]), at + n
        if kind != _ARRAY:
            return number(data, at, f"{order}{_FORMATS[kind]}")
        of, at = number(data, at, "<I")
        n, at = number(data, at, count)
        found = []
        for _ in range(n):
            value, at = read(data, at, of)
            found.append(value)
        return found, at

    return read


_gguf_value = _reading()


def _bytes_used(data, at, kind):
    value, stop = _gguf_value(data, at, kind)
    return value, stop - at


def _start_of_an_array(data, at, kind):
    value, stop = _gguf_value(data, at, kind)
    return value, at + 12 if kind == _ARRAY else stop


def _without_the_count(data, at, kind):
    value, stop = _gguf_value(data, at, kind)
    return value, stop - 8 * (kind == _STRING)


def _within_the_file(answer, data, at, kind):
    """Its result; lengths that are misread lead out of the file."""
    try:
        return answer(data, at, kind)
    except struct.error as error:
        return f"struct.error: {error}"


def _ends_right(found, data, at, kind):
    return found[1] == _gguf_value(data, at, kind)[1]


gguf_value = Exercise(
    "The bytes of a GGUF file, where a value begins, its kind -> (the value, where it ends).",
    right=_gguf_value,
    cases=_value_cases,
    run=_within_the_file,
    mistakes=[
        (_reading(length="<I", count="<I"),
         "the lengths of strings and arrays are read as 4 bytes. They have 8, \"<Q\"."),
        (_reading(length="<I"),
         "the length of a string is read as 4 bytes. It has 8, \"<Q\"."),
        (_reading(count="<I"),
         "the number of an array's entries is read as 4 bytes. It has 8, \"<Q\"; the kind of the "
         "entries before it has 4."),
        (_reading(letters=True),
         "the length of a string is counted in letters. It is the number of its bytes in UTF-8: "
         "cut the bytes first, decode then."),
        (_reading(order=">"),
         "the numbers are read with the highest byte first. GGUF has the lowest first, \"<\"."),
        (_reading(text=bytes),
         "a string is left as bytes. `.decode()` makes text of it."),
        (_bytes_used,
         "the second result is how many bytes the value takes. Return where it ends, counted from "
         "the beginning of the file: the next value begins there."),
        (_start_of_an_array,
         "an array ends where its first entry begins. Keep the place that the last entry "
         "returned."),
        (_without_the_count,
         "the 8 bytes before a string, which say how long it is, are left out where it ends."),
        (lambda data, at, kind: _gguf_value(data, at, kind)[0],
         "these are the values. Return where they end, too: (value, end)."),
        (lambda data, at, kind: _gguf_value(data, at, kind)[::-1],
         "the two results are exchanged: first the value, then where it ends."),
    ],
    properties=[
        (of_each(lambda found, *case: case[2] == _ARRAY or found[0] == _gguf_value(*case)[0]),
         "a number or a string is not what the file says."),
        (of_each(lambda found, *case: case[2] == _ARRAY or _ends_right(found, *case)),
         "the place after a number or a string is wrong. It is `at`, and the bytes of the value; "
         "for a string 8 more, which hold its length."),
        (of_each(_ends_right),
         "the place after an array is wrong. Before the entries it has 4 bytes, the kind of its "
         "entries, and 8, how many there are."),
    ],
    hints=(
        "Three cases: a string, an array, and all others, for which `FORMATS` has the letter and "
        "`struct.calcsize` the number of bytes.",
        "An array's entries are values, each of which begins where the one before ended: the "
        "function can call itself.",
    ),
)  # fmt: skip


# --- One flipped bit ------------------------------------------------------------------------------


def _mend_cases():
    text = b"Who has the kite?"
    random = bytes(drawn(7, (300,))[0].mul(40).to(torch.int8).view(torch.uint8).tolist())
    flipped = {
        "17 bytes, a bit of byte 3": (text, 3, 0x01),
        "the highest bit of byte 0": (text, 0, 0x80),
        "a bit that was 1 and is 0": (bytes([255, 255, 255]), 1, 0x10),
        "the last bit of 300 bytes": (random, 299, 0x80),
        "a single byte": (b"\x2a", 0, 0x20),
        "40 zeros": (bytes(40), 39, 0x04),
        "nothing is flipped": (random[:50], 0, 0x00),
    }
    cases = {}
    for name, (right, i, bit) in flipped.items():
        wrong = bytearray(right)
        wrong[i] ^= bit
        cases[name] = bytes(wrong), zlib.crc32(right)
    return cases


def _mending(bits=range(8), change=lambda byte, bit: byte ^ bit, kind=bytes):
    """The answer that tries these changes of each byte."""

    def mend(data, crc):
        if zlib.crc32(data) == crc:
            return kind(data)
        for i, bit in itertools.product(range(len(data)), bits):
            trial = bytearray(data)
            trial[i] = change(trial[i], 1 << bit)
            if zlib.crc32(trial) == crc:
                return kind(trial)
        return kind(data)

    return mend


def _never_flipped_back(data, crc):
    trial = bytearray(data)
    for i, bit in itertools.product(range(len(data)), range(8)):
        if zlib.crc32(trial) == crc:
            break
        trial[i] ^= 1 << bit
    return bytes(trial)


_mend = _mending()


mend = Exercise(
    "Bytes in which one bit may be flipped, the CRC-32 of the right ones -> the right bytes.",
    right=_mend,
    cases=_mend_cases,
    mistakes=[
        (_mending(bits=[0]),
         "only the lowest bit of a byte is tried. It has eight."),
        (_mending(bits=range(7)),
         "the highest bit of a byte is not tried: 1 << 7, which is 128."),
        (_mending(change=lambda byte, bit: byte | bit),
         "a bit is set, but a bit that is 1 never becomes 0. `^` does both."),
        (_mending(change=lambda byte, bit: byte & ~bit),
         "a bit is cleared, but a bit that is 0 never becomes 1. `^` does both."),
        (lambda data, crc: data,
         "no trial has the right CRC-32, and the bytes come back as they were. Does a trial differ "
         "from them by one bit?"),
        (_mending(kind=bytearray),
         "the result is right, and a bytearray: `bytes(...)` makes bytes of it."),
        (_never_flipped_back,
         "a bit that was tried stays flipped while the next one is tried. Begin each trial with a "
         "new copy of the bytes."),
    ],
    properties=[
        (of_each(lambda found, data, crc: len(found) == len(data)),
         "the result has another number of bytes. No byte is lost or new; one bit differs."),
        (of_each(lambda found, data, crc: zlib.crc32(data) != crc or found == data),
         "bytes whose CRC-32 is right have been changed. If it fits, return them as they are."),
        (of_each(lambda found, data, crc: sum(
            (a ^ b).bit_count() for a, b in zip(found, data, strict=True)) <= 1),
         "more than one bit differs from what was given. Begin each trial with a new copy of the "
         "bytes."),
    ],
    hints=(
        "17 bytes have 136 bits. `zlib.crc32` takes a microsecond: how many trials can you afford?",
        "`trial = bytearray(data)` is a copy that can be changed, and `trial[i] ^= 1 << bit` flips "
        "one bit of it. Is the CRC of the trial the right one?",
    ),
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
