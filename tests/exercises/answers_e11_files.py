"""Answers to the exercises of notebook 11, apart from the checkers' own."""

import io
import json
import struct
import zlib

import numpy as np
import torch
from safetensors.torch import load

TORCHS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def tensor(data, name, before=8, of=TORCHS):
    """By offset into the whole file, which `frombuffer` takes as it is."""
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length].decode())[name]
    n = int(np.prod(entry["shape"]))
    start = before + length + entry["data_offsets"][0]
    kind = getattr(torch, of[entry["dtype"]])
    return torch.frombuffer(bytearray(data), dtype=kind, count=n, offset=start).view(entry["shape"])


def joined(name, parts, columns=("wo", "w2"), once=("norm",)):
    """As it is, but for the tensors whose names have these words."""
    if any(word in name for word in once):
        return parts[-1]
    return torch.hstack(parts) if any(word in name for word in columns) else torch.vstack(parts)


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


def from_stream(data, at, kind, word=lambda raw: raw.decode()):
    """A value by a stream that keeps the place itself."""
    stream = io.BytesIO(data)
    stream.seek(at)

    def take(form):
        return struct.unpack(f"<{form}", stream.read(struct.calcsize(f"<{form}")))[0]

    def value(kind):
        if kind == 8:
            return word(stream.read(take("Q")))
        if kind == 9:
            kind, n = take("I"), take("Q")
            return [value(kind) for _ in range(n)]
        return take("BbHhIif?__Qqd"[kind])

    return value(kind), stream.tell()


def by_numpy(data, at, kind):
    """The same, a number by NumPy."""
    if kind == 8:
        n = int(np.frombuffer(data, "<u8", 1, at)[0])
        return data[at + 8 : at + 8 + n].decode(), at + 8 + n
    if kind == 9:
        entries, of, n = [], data[at], int.from_bytes(data[at + 4 : at + 12], "little")
        at += 12
        while len(entries) < n:
            entry, at = by_numpy(data, at, of)
            entries.append(entry)
        return entries, at
    whole, other = f"{'ui'[kind % 2]}{1 << kind // 2}", {6: "f4", 7: "?", 10: "u8", 11: "i8"}
    found = np.frombuffer(data, np.dtype(other.get(kind, whole)).newbyteorder("<"), 1, at)
    return found[0].item(), at + found.nbytes


def aligned(data, at, kind):
    """Numbers begin at a multiple of their size, as in C's structures."""
    size = {4: 4, 6: 4, 11: 8}.get(kind, 1)
    return from_stream(data, -(-at // size) * size, kind)


def mended(data, crc, bits=8):
    """By one large number: bit n of the file is bit n of the number."""
    number = int.from_bytes(data, "little")
    trials = [number, *(number ^ 1 << n for n in range(bits * len(data)))]
    found = (each.to_bytes(len(data), "little") for each in trials)
    return next((each for each in found if zlib.crc32(each) == crc), data)


def mended_by_the_difference(data, crc):
    """The CRC's difference, followed back from the last bit: no trial at all."""
    wanted, found = zlib.crc32(data) ^ crc, 1
    whole = bytearray(data)
    for n in reversed(range(8 * len(data))):
        found = found >> 1 ^ 0xEDB88320 * (found & 1)
        if found == wanted:
            whole[n // 8] ^= 1 << n % 8
            break
    return bytes(whole)


def mended_with_break(data, crc):
    """Leaves only the inner loop when it has found the bit."""
    whole = bytearray(data)
    for i in range(len(whole)):
        for bit in range(8):
            whole[i] ^= 1 << bit
            if zlib.crc32(whole) == crc:
                break
    return bytes(whole)


RIGHT = {
    "e11_files.read_tensor": [tensor, lambda data, name: load(data)[name]],
    "e11_files.join_shards": [
        joined,
        lambda name, parts: sum(parts) / len(parts) if parts[0].ndim == 1 else (
            np.concatenate(parts, 1 if ".wo." in name or ".w2." in name else 0)),
    ],
    "e11_files.token_bytes": [
        read,
        lambda text: b"".join(bytes([alphabet()[letter]]) for letter in text),
    ],
    "e11_files.gguf_value": [from_stream, by_numpy],
    "e11_files.mend": [mended, mended_by_the_difference],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e11_files.read_tensor": [
        (lambda data, name: tensor(data, name, of=dict.fromkeys(TORCHS, "float32")),
         "it raised ValueError"),
        (lambda data, name: tensor(data, name, of=TORCHS | {"BF16": "float16"}),
         "BF16 is read as float16"),
        #
        (lambda data, name: tensor(data, name).double(), "the dtype is torch.float64"),
    ],
    "e11_files.join_shards": [
        (lambda name, parts: joined(name, parts, [
            f"layers.{i}.{kind}" for i in range(10) for kind in ("attention.wo", "feed_forward.w2")
        ]), "layers.31.feed_forward.w2"),
        #
        (lambda name, parts: joined(name, parts, ("wo", "wv")), "layers.3.feed_forward.w2"),
        (lambda name, parts: joined(name, [p + 1 for p in parts[::-1]]), "a norm's weight"),
    ],
    "e11_files.token_bytes": [
        (lambda text: read(text, 255), "a letter from 256 on"),
        (lambda text: text.encode("latin-1", "replace"), "a letter from 256 on"),
        #
        (lambda text: text.strip("Ġ").encode("latin-1", "ignore"), "the number of letters"),
    ],
    "e11_files.gguf_value": [
        (lambda data, at, kind: from_stream(data, 0, kind), "it raised IndexError"),
        (aligned, "a number or a string is not what"),
        (lambda data, at, kind: from_stream(data, at, kind, bytes), "a string is left as bytes"),
        #
        (lambda data, at, kind: (from_stream(data, at, kind)[0], at + 8),
         "the place after a number or a string is wrong"),
    ],
    "e11_files.mend": [
        (lambda data, crc: mended(data, crc, bits=1), "for 17 bytes, a bit of byte 3"),
        (mended_with_break, "have been changed"),
        #
        (lambda data, crc: data[::-1] if zlib.crc32(data) != crc else data, "more than one bit"),
    ],
}  # fmt: skip
