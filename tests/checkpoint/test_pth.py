"""A .pth holds named tensors with bytes of their own, or it is refused: files of random structure.

`PYTHONPATH=tests python tests/checkpoint/test_pth.py 20000 7` tries 20,000 files from the seed 7.
The fuzz suite changes bytes; here the file is well formed, and what it says may be impossible. Each
file gives the tensors that were put into it, or an `InputError`.
"""

import collections
import faulthandler
import io
import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import BYTES, PTH, SMALL, make_weights

from llama3_scratch import InputError, load, save
from llama3_scratch.checkpoint import meta, pth

N_FILES, SEED = 1500, 1
MOST_MEMORY = 1 << 30  # bytes of address space beyond what the imports take
MOST_SECONDS = 20  # for one file
STORAGES = {torch.float32: "Float", torch.bfloat16: "BFloat16", torch.float16: "Half"}
TENSOR = ("torch._utils", "_rebuild_tensor_v2")


class Op:
    """A piece of a pickle, given as bytes."""

    def __init__(self, *parts):
        self.code = b"".join(map(pickled, parts))


class Dict(list):
    """Pairs of a dictionary in order; a name may be there twice."""


def pickled(value):
    """A value -> its opcodes in protocol 2, without PROTO and STOP."""
    match value:
        case Op():
            return value.code
        case bytes():
            return value
        case bool():
            return b"\x88" if value else b"\x89"
        case None:
            return b"N"
        case int() if abs(value) < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case tuple():
            return b"(" + b"".join(map(pickled, value)) + b"t"
        case Dict():
            return b"}(" + b"".join(map(pickled, sum(value, ()))) + b"u"
        case list():
            return b"](" + b"".join(map(pickled, value)) + b"e"
    raise TypeError(value)


def named(module, name):
    return Op(f"c{module}\n{name}\n".encode())


def call(function, *arguments):
    return Op(named(*function), arguments, b"R")


ORDERED = call(("collections", "OrderedDict"))


def storage(dtype, key, numel, place="cpu"):
    kind = named("torch", f"{STORAGES[dtype]}Storage")
    return Op(("storage", kind, key, place, numel), b"Q")


class Structure:
    """A random .pth: what its tensors say, and its records; then perhaps one fault."""

    def __init__(self, chance):
        self.chance = chance
        self.tensors, self.records, self.expected = {}, {}, {}
        keys = chance.sample(range(50), 9)
        for i in range(chance.randrange(2, 6)):
            name = chance.choice(["norm.weight", "layers.0.ffn_norm.weight", "é", "", "x" * 200])
            name += str(i) if len(name) < 150 else ""
            dtype, key = chance.choice(list(STORAGES)), str(keys[i])
            shape = tuple(chance.sample([1, 2, 3, 5, 7], chance.randrange(1, 4)))
            numel = math.prod(shape)
            stride = tuple(math.prod(shape[j + 1 :]) for j in range(len(shape)))
            data = chance.randbytes(numel * dtype.itemsize)
            self.records[f"data/{key}"] = data
            self.tensors[name] = dict(dtype=dtype, key=key, numel=numel, offset=0, shape=shape,
                                      stride=stride, grad=chance.random() < 0.2)  # fmt: skip
            self.expected[name] = torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
        self.name = chance.choice(list(self.tensors))  # of the tensor that a fault concerns
        self.more, self.before, self.after = [], b"", b""
        self.head = chance.choice([b"}", ORDERED.code])
        self.order = chance.choice([b"little", None])
        self.compressed, self.folder, self.fault = set(), chance.choice(["archive/", "a/"]), None
        if chance.random() < 0.2 and self.head != b"}":  # as of nn.Module.state_dict()
            version = Dict([("version", 1)])
            self.after = Op(Dict([("_metadata", Dict([("", version)]))]), b"b").code
        if chance.random() < 0.2:
            self.tie()

    def tie(self):
        first, *_ = self.tensors
        for name in sorted(pth.TIED):
            self.tensors[name] = dict(self.tensors[first])
            self.expected[name] = self.expected[first]
        if self.name == first:
            self.name = min(pth.TIED)
        del self.tensors[first], self.expected[first]

    def built(self, name):
        t = self.tensors[name]
        numbers = t.get("storage") or storage(t["dtype"], t["key"], t["numel"], t.get("at", "cpu"))
        tensor = call(TENSOR, numbers, t["offset"], t["shape"], t["stride"], t["grad"], ORDERED)
        if t.get("wrapped"):
            return t["wrapped"](tensor)
        if self.chance.random() < 0.2:
            return call(("torch._utils", "_rebuild_parameter"), tensor, True, ORDERED)
        return tensor

    def write(self, path):
        pairs = [(name, self.built(name)) for name in self.tensors] + self.more
        content = b"(" + b"".join(map(pickled, sum(pairs, ()))) + b"u"
        body = b"\x80\x02" + self.before + self.head + content + self.after + b"."
        records = {"data.pkl": body} | self.records | {"version": b"3\n"}
        if self.order is not None:
            records["byteorder"] = self.order
        names = list(records)
        if self.chance.random() < 0.3:
            self.chance.shuffle(names)
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                entry = zipfile.ZipInfo(self.folder + name)
                if name in self.compressed:
                    entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, records[name])


# Faults: each changes a structure so that it must be refused.


def of_record(change):
    def spoil(s):
        key = f"data/{s.tensors[s.name]['key']}"
        s.records[key] = change(s.records[key])

    return spoil


def of_tensor(**changes):
    def spoil(s):
        t = s.tensors[s.name]
        t |= {key: change(t) if callable(change) else change for key, change in changes.items()}

    return spoil


def with_more(name, value):
    def spoil(s):
        s.more.append((name, value(s) if callable(value) else value))

    return spoil


def with_code(**where):
    return lambda s: s.__dict__.update(where)


def wrapped(function):
    return of_tensor(wrapped=lambda t: function)


def one_record_for_two(s):
    """Another tensor has the same bytes, all or some of them."""
    same = dict(s.tensors[s.name])
    if s.chance.random() < 0.5:
        same["dtype"] = torch.bfloat16 if same["dtype"] == torch.float16 else torch.float16
    s.tensors["another.weight"] = same


def tied_in_part(s):
    s.tie()
    a, b = (s.tensors[name] for name in sorted(pth.TIED))
    a |= {"shape": (a["numel"], 1), "stride": (1, 1)}
    b |= {"shape": (1, b["numel"], 1), "stride": (b["numel"], 1, 1)}


def columns_and_rows_swapped(s):
    t = s.tensors[s.name]
    t |= {"shape": (2, 3), "stride": (1, 2), "numel": 6}
    s.records[f"data/{t['key']}"] = bytes(6 * t["dtype"].itemsize)


def deep():
    """A tuple of two tuples of two tuples ...: 2^50 parts in 250 bytes."""
    return Op(b")", b"q\x07h\x07\x86" * 50)


REBUILD = ("torch._tensor", "_rebuild_from_type_v2")
FAULTS = {
    "a record a byte short": of_record(lambda b: b[:-1]),
    "a record a byte long": of_record(lambda b: b + b"x"),
    "an empty record": of_record(lambda b: b""),
    "no record": lambda s: s.records.pop(f"data/{s.tensors[s.name]['key']}"),
    "more numbers than the record": of_tensor(numel=lambda t: t["numel"] + 1),
    "half as many numbers": of_tensor(numel=lambda t: t["numel"] // 2),
    "terabytes": of_tensor(numel=2**40, shape=(2**40,), stride=(1,)),
    "more than 64 bits": of_tensor(numel=2**70, shape=(2**70,), stride=(1,)),
    "a negative size": of_tensor(shape=(-1,), stride=(1,)),
    "a size that overflows": of_tensor(shape=(2**32, 2**32), stride=(2**32, 1)),
    "a size that is true": of_tensor(shape=(True, 3), stride=(3, 1), numel=3),
    "a size that is no number": of_tensor(shape=("2",), stride=(1,)),
    "no shape": of_tensor(shape=3),
    "a shape that explodes": of_tensor(shape=lambda t: deep()),
    "nine dimensions": of_tensor(shape=(1,) * 9, stride=(1,) * 9),
    "one stride too few": of_tensor(stride=lambda t: t["stride"][1:]),
    "one number, repeated": of_tensor(shape=(1000,), stride=(0,)),
    "one number of a record of one": of_tensor(shape=(1000,), stride=(0,), numel=1),
    "a negative stride": of_tensor(shape=(7,), stride=(-1,)),
    "columns and rows swapped": columns_and_rows_swapped,
    "overlapping rows": of_tensor(shape=(4, 5), stride=(1, 1), numel=8),
    "an offset": of_tensor(offset=1),
    "an offset far away": of_tensor(offset=2**50),
    "a negative offset": of_tensor(offset=-1),
    "an offset that is no number": of_tensor(offset="0"),
    "a part of a record": of_tensor(numel=lambda t: t["numel"] * 2),
    "one record for two": one_record_for_two,
    "the tied two of different shapes": tied_in_part,
    "another key": of_tensor(key="77"),
    "a key that leads elsewhere": of_tensor(key="../data.pkl"),
    "a key that is a number": of_tensor(key=lambda t: int(t["key"])),
    "a storage that explodes": of_tensor(storage=lambda t: Op(
        ("storage", deep(), "0", "cpu", 1), b"Q")),
    "a storage of five parts that is none": of_tensor(storage=lambda t: (1, 2, 3, 4, 5)),
    "numbers of 64 bits": of_tensor(storage=lambda t: Op(
        ("storage", named("torch", "DoubleStorage"), t["key"], "cpu", 1), b"Q")),
    "big-endian": with_code(order=b"big"),
    "no known byte order": with_code(order=b"middle"),
    "an empty byte order": with_code(order=b""),
    "a compressed pickle": with_code(compressed={"data.pkl"}),
    "a compressed record": lambda s: s.compressed.add(f"data/{s.tensors[s.name]['key']}"),
    "a pickle that is too long": with_code(before=pickled("x" * 10**7)),
    "an integer": with_more("epoch", 3),
    "a number": with_more("loss", 0.5),
    "nothing": with_more("none", None),
    "a text": with_more("name", "llama"),
    "a tuple": with_more("betas", (1, 2)),
    "a tuple that explodes": with_more("bomb", deep()),
    "a list": with_more("list", [1, 2]),
    "a dictionary in it": with_more("model", Dict([("a", 1)])),
    "a dictionary of tensors in it": with_more("model", lambda s: Dict(
        [("a", s.built(s.name))])),
    "a type": with_more("type", named("torch", "float32")),
    "a storage": with_more("storage", storage(torch.float32, "0", 1)),
    "a function": with_more("function", named(*TENSOR)),
    "itself": with_code(head=b"}q\x05(X\x04\0\0\0selfh\x05u"),
    "a name that is a number": with_more(3, lambda s: s.built(s.name)),
    "a name that is a tuple": with_more((1, 2), lambda s: s.built(s.name)),
    "a name that explodes": with_more(deep(), lambda s: s.built(s.name)),
    "a name of 201 letters": lambda s: s.tensors.update({"y" * 201: s.tensors.pop(s.name)}),
    "a name twice": lambda s: s.more.append((s.name, s.built(s.name))),
    "attributes of a tensor": wrapped(lambda t: call(
        REBUILD, named(*TENSOR), named("torch", "Tensor"), (), Dict([("aminmax", 5)]))),
    "attributes of a parameter": wrapped(lambda t: call(
        ("torch._utils", "_rebuild_parameter_with_state"), t, True, ORDERED,
        Dict([("aminmax", 5)]))),
    "attributes built into a tensor": wrapped(lambda t: Op(t, Dict([("aminmax", 5)]), b"b")),
    "attributes of the dictionary": with_code(
        head=ORDERED.code, after=Op(Dict([("values", 5)]), b"b").code),
    "attributes of a plain dictionary": with_code(
        head=b"}", after=Op(Dict([("values", 5)]), b"b").code),
    "hooks": wrapped(lambda t: call(
        ("torch._utils", "_rebuild_parameter"), t, True, Dict([("a", 1)]))),
    "a tensor of a tensor": wrapped(lambda t: call(TENSOR, t, 0, (1,), (1,), False, ORDERED)),
    "an argument too few": wrapped(lambda t: call(TENSOR, 0, (1,), (1,), False, ORDERED)),
    "a sparse tensor": wrapped(lambda t: call(
        ("torch._utils", "_rebuild_sparse_tensor"), named("torch", "sparse_coo"), (t, t, (5,)))),
    "a tensor of the device meta": wrapped(lambda t: call(
        ("torch._utils", "_rebuild_meta_tensor_no_storage"), named("torch", "float32"), (3,), (1,),
        False)),
    "an allocation that is left behind": with_code(
        before=Op(named("torch", "Tensor"), (2**40,), b"R").code),
    "a function that is called": with_code(before=call(("posix", "getpid")).code),
    "a function that is only named": with_code(before=named("os", "system").code),
    "code of torch": with_code(before=call(("torch.hub", "load"), "a", "b").code),
    "a pickle of protocol 4": with_code(before=pickle.dumps({"a": 1}, 4)[:-1]),
    "a memo of gigabytes": with_code(before=b"Nr\xff\xff\xff\x7f."),
    "an end before the end": with_code(before=b"."),
    "an end after nothing": with_code(before=b"N0."),
    "no end": with_code(after=b"X\xff\xff\xff\x7f"),
    "a list on the stack": with_code(before=b"](K\x01K\x02e"),
    "a call of a number": with_code(before=b"K\x01)R"),
    "an object of a class": with_code(before=named("torch.nn", "Parameter").code + b")\x81"),
    "an extension": with_code(before=b"\x82\x01"),
    "a long of a megabyte": with_code(before=b"\x8b\0\0\x10\0" + bytes(2**20)),
    "something after the dictionary": with_code(after=b"N"),
    "something else than a dictionary": with_code(after=b"\x85"),
    "records without a folder": with_code(folder=""),
    "records in a folder of another depth": with_code(folder="a/b/"),
}  # fmt: skip


def of_file(name):
    """Faults of the zip: {what: a function of the file's bytes and a structure}."""

    def overlapping(data, s):
        """The directory says that a record begins where another one does."""
        places = [data.index(b"PK\x01\x02")]
        while (at := data.find(b"PK\x01\x02", places[-1] + 1)) > 0:
            places.append(at)
        a, b = s.chance.sample(places, 2)
        return data[: a + 42] + data[b + 42 : b + 46] + data[a + 46 :]

    def longer_name(data, s):
        """What torch takes as the record begins later, in the next record."""
        at = data.index(b"data/")
        at = data.rindex(b"PK\x03\x04", 0, at) + 26
        return data[:at] + struct.pack("<H", s.chance.randrange(100, 200)) + data[at + 2 :]

    def twice(data, s):
        out = io.BytesIO(data)
        with zipfile.ZipFile(out, "a") as archive:
            key = f"{s.folder}data/{s.tensors[s.name]['key']}"
            with pytest.warns(UserWarning):
                archive.writestr(key, bytes(len(archive.read(key))))
        return out.getvalue()

    def in_capitals(data, s):
        out = io.BytesIO(data)
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr(f"{s.folder}DATA.PKL", b"\x80\x02}.")
        return out.getvalue()

    def two_folders(data, s):
        out = io.BytesIO(data)
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("other/data.pkl", b"\x80\x02}.")
        return out.getvalue()

    def sizes_in_the_directory(data, s):
        at = data.rindex(b"PK\x01\x02")
        return data[: at + 20] + struct.pack("<II", 2**31, 2**31) + data[at + 28 :]

    def a_directory_of_gigabytes(data, s):
        at = data.rindex(b"PK\x05\x06")
        return data[: at + 12] + struct.pack("<I", 2**32 - 2) + data[at + 16 :]

    def another_zip_before(data, s):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02}.")
        return out.getvalue() + data

    return {
        "overlapping": overlapping, "longer_name": longer_name, "twice": twice,
        "in_capitals": in_capitals, "two_folders": two_folders,
        "sizes_in_the_directory": sizes_in_the_directory,
        "a_directory_of_gigabytes": a_directory_of_gigabytes,
        "another_zip_before": another_zip_before,
        "cut": lambda data, s: data[: s.chance.randrange(len(data))],
    }[name]  # fmt: skip


OF_FILE = ["overlapping", "longer_name", "twice", "in_capitals", "two_folders",
           "sizes_in_the_directory", "a_directory_of_gigabytes", "another_zip_before",
           "cut"]  # fmt: skip


def try_one(path, number, seed):
    """Write one file and read it -> "read" or "refused". Every fourth file has no fault."""
    s = Structure(random.Random(seed * 1_000_003 + number))
    faults = [None] * ((len(FAULTS) + len(OF_FILE)) // 3) + [*FAULTS, *OF_FILE]
    fault = faults[number % len(faults)]
    if fault in FAULTS:
        FAULTS[fault](s)
    s.write(path)
    if fault in OF_FILE:
        path.write_bytes(of_file(fault)(path.read_bytes(), s))
    try:
        found = meta._read_file(path)
    except InputError as error:
        assert fault, f"a file without a fault is refused: {error}"
        assert 10 < len(str(error)) < 900, error
        return "refused"
    assert not fault, f"it is read, with {fault}"
    assert list(found) == list(s.expected)
    for name, tensor in s.expected.items():
        assert type(found[name]) is torch.Tensor and found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    return "read"


def run(n_files, seed, mutant=""):
    """Try n_files -> {"tried", "refused", "read", "escaped": [...]}."""
    import resource  # not on Windows

    if mutant:  # the control: torch.load alone
        pth.check = lambda path: None
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MOST_MEMORY, here + MOST_MEMORY))
    counts, escaped = collections.Counter(), []
    with tempfile.TemporaryDirectory() as made:
        for i in range(n_files):
            path = Path(made) / f"{i}.pth"
            print(i, end=" ", file=sys.stderr, flush=True)  # the last one, if the process ends
            faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
            try:
                counts[try_one(path, i, seed)] += 1
            except KeyboardInterrupt:
                raise
            except BaseException:
                escaped.append(f"{i}: " + "\n".join(traceback.format_exc().split("\n")[-6:]))
            faulthandler.cancel_dump_traceback_later()
            path.unlink()
    return {"tried": n_files, **counts, "escaped": escaped}


def in_a_process(*arguments):
    return subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True,
        timeout=280, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the memory limit needs Linux")


@on_linux
@pytest.mark.thorough
def test_files_of_random_structure_give_their_tensors_or_an_input_error(record_property):
    done = in_a_process(N_FILES, SEED)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    counts = json.loads(done.stdout)
    record_property("files tried", N_FILES)
    assert counts["tried"] == N_FILES and not counts["escaped"], counts["escaped"][:3]
    assert counts["read"] > N_FILES / 5 and counts["refused"] > N_FILES / 2


@on_linux
def test_what_torch_load_alone_would_take_is_found():
    """The control: without the check, impossible files are read, or end the process."""
    done = in_a_process(80, SEED, "mutant")
    escaped = json.loads(done.stdout)["escaped"]
    assert sum("it is read, with" in text for text in escaped) > 5, escaped


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "small", make_weights(SMALL, torch.bfloat16), SMALL, BYTES)
    return tmp_path / "small"


@pytest.mark.parametrize("command", ["verify", "--checkpoint"])
def test_a_file_that_ended_the_process_gives_one_message(folder, command):
    """Terabytes that are left on the stack, and big-endian numbers: SIGSEGV in torch, once."""
    one = call(TENSOR, storage(torch.float32, "0", 4), 0, (4,), (1,), False, ORDERED)
    huge = call(("torch", "Tensor"), 2**40)
    with zipfile.ZipFile(folder / PTH, "w") as archive:
        content = Op(b"\x80\x02", huge, Dict([("norm.weight", one)]), b".")
        archive.writestr("a/data.pkl", content.code)
        archive.writestr("a/byteorder", b"big")
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/version", b"3\n")
    done = subprocess.run([sys.executable, "-m", "llama3_scratch", command, str(folder)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode in (1, 2), done
    assert "has the byte order b'big': expected b'little'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 5)
        self.norm = torch.nn.Parameter(torch.rand(7).half())


def test_what_torch_save_writes_is_read(tmp_path):
    """Dictionaries of any kind, parameters, with or without checksums."""
    module, path = Linear(), tmp_path / "a.pth"
    state = module.state_dict()
    for content in (
        state, dict(state), dict(module.named_parameters()), collections.OrderedDict(state.items()),
        {"a": torch.rand(2, 3), "empty": torch.rand(0, 3), "one": torch.tensor(3.0)},
        {"a": torch.rand(5, requires_grad=True)}, {}, {"a": torch.rand(3, 1).T},
    ):  # fmt: skip
        for checksums in (True, False):
            torch.serialization.set_crc32_options(checksums)
            try:
                torch.save(content, path)
            finally:
                torch.serialization.set_crc32_options(True)
            found = meta._read_file(path)
            assert list(found) == list(content)
            for name, tensor in found.items():
                assert type(tensor) is torch.Tensor and not tensor.requires_grad
                assert torch.equal(tensor, content[name])


def test_tensors_that_have_not_their_own_bytes_are_copied_when_saved(tmp_path):
    """The reader refuses them; `save` writes what it can read."""
    weights, path = make_weights(SMALL), tmp_path / PTH
    wide = torch.rand(70)
    spoiled = {
        "layers.0.attention.wq.weight": torch.rand(60, 60).T, "norm.weight": wide[3:63],
        "layers.1.ffn_norm.weight": wide[:60], "layers.2.ffn_norm.weight": torch.ones(1).expand(60),
        "layers.3.feed_forward.w1.weight": weights["layers.2.feed_forward.w1.weight"],
        "layers.1.attention_norm.weight": torch.nn.Parameter(torch.rand(60)),
    }  # fmt: skip
    spoiled["layers.1.attention_norm.weight"].own = 3
    weights |= spoiled
    save(tmp_path, weights, SMALL, BYTES)
    loaded = load(tmp_path).weights
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert path.stat().st_size < 4 * SMALL.n_parameters + 20_000
    for name in spoiled:  # the controls
        others = {} if "w1" not in name else {"twice": weights[name]}
        torch.save({name: weights[name]} | others, path)
        with pytest.raises(InputError, match="contiguous|dense"):
            meta._read_file(path)


def test_a_tied_output_may_share_the_record_of_the_table(tmp_path):
    """The other names may not: each of them would be the same bytes under another name."""
    tensor = torch.rand(5, 3)
    for names, right in (pth.TIED, True), ({"norm.weight", "output.weight"}, False):
        torch.save(dict.fromkeys(sorted(names), tensor), tmp_path / PTH)
        if right:
            assert torch.equal(meta._read_file(tmp_path / PTH)["output.weight"], tensor)
            continue
        with pytest.raises(InputError, match="'output.weight' has the bytes of 'norm.weight'"):
            meta._read_file(tmp_path / PTH)


def test_the_number_of_tensors_is_bounded(tmp_path, monkeypatch):
    torch.save({str(i): torch.rand(2) for i in range(4)}, tmp_path / PTH)
    assert len(meta._read_file(tmp_path / PTH)) == 4
    monkeypatch.setattr(pth, "MOST_TENSORS", 3)
    with pytest.raises(InputError, match="has more than 3 tensors"):
        meta._read_file(tmp_path / PTH)


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])))
