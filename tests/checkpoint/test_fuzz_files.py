"""Thousands of spoiled files: each of them loads or raises `InputError`, in bounded memory.

`PYTHONPATH=tests python tests/checkpoint/test_fuzz_files.py 20000 7` tries 20,000 from the seed 7.
Each input is a checkpoint with one spoiled file: it is loaded, a prompt is encoded and decoded, and
one token goes through the model. It works, with tensors of the right shapes, or the error says what
is wrong.
"""

import base64
import collections
import copy
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import helpers
import pytest
import torch
from safetensors.torch import save_file

from llama3_scratch import PROMPT, Config, InputError, forward, load, save
from llama3_scratch.checkpoint import huggingface, meta
from llama3_scratch.config import weight_shapes

N_INPUTS, SEED = 3000, 1
MOST_MEMORY = 1 << 30  # bytes of address space beyond what the imports take
MOST_SECONDS = 20  # for one input


def checkpoints(folder):
    """Make three small checkpoints -> the paths of all their files."""
    config = Config(24, 2, 4, 2, helpers.BYTES.vocab_size, 7, 1e-5, 500000.0, 0.5)
    weights = helpers.make_weights(config, torch.bfloat16)
    save(folder / "metas", weights, config, helpers.BYTES)
    tensors = helpers.halves(weights, config)
    for name in ("sharded", "single"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(helpers.config_json(config)))
    where = {}
    for i, part in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "sharded" / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    llama_3s = helpers.llama_3s_tokenizer(folder / "metas" / "tokenizer.model")
    llama_3s.save(str(folder / "sharded" / "tokenizer.json"))
    save_file(tensors, folder / "single" / "model.safetensors")
    helpers.byte_level_tokenizer().save(str(folder / "single" / "tokenizer.json"))
    (folder / "single" / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    return sorted(path for path in folder.glob("*/*") if path.is_file())


class Spoiler:
    """Change a file's bytes at random."""

    def __init__(self, seed):
        self.chance = random.Random(seed)

    def __call__(self, path, data):
        name, chance = path.name, self.chance
        if chance.random() < 0.3:
            return self.bytes(data)
        if name.endswith(".json"):
            return self.json(data)
        if name.endswith(".safetensors"):
            length = int.from_bytes(data[:8], "little")
            header, rest = data[8 : 8 + length], data[8 + length :]
            if chance.random() < 0.15:  # another length
                near = [length - 1, length + 1, len(data), len(data) - 8]
                far = [0, 1, 7, 10**7, 10**8, 2**31, 2**63 - 1, 2**63, 2**64 - 1]
                length = chance.choice(near + far)
                return length.to_bytes(8, "little") + header + rest
            header = self.bytes(header) if chance.random() < 0.3 else self.json(header)
            return len(header).to_bytes(8, "little") + header + rest
        if name.endswith(".pth"):  # only the pickle inside
            start = data.index(b"data.pkl") + 8
            stop = data.index(b"PK\x03\x04", start)
            return data[:start] + self.bytes(data[start:stop], same_length=True) + data[stop:]
        lines = data.split(b"\n")
        for _ in range(chance.randrange(1, 4)):
            i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
            token = base64.b64encode(chance.randbytes(chance.randrange(0, 5)))
            lines[i] = chance.choice([
                lines[j], b"", b"=", token, token + b" %d" % i, lines[i] + b"9",
                b" ".join(lines[j:]), lines[i].replace(b" ", b" -"), b"\xff\x00",
                lines[i].replace(b" ", b"\t"),
            ])  # fmt: skip
        return b"\n".join(lines)

    def bytes(self, data, same_length=False):
        chance = self.chance
        for _ in range(chance.choice([1, 1, 2, 8])):
            a = chance.randrange(len(data) + 1)
            b = min(len(data), a + chance.choice([1, 2, 8, 100]))
            new = [chance.randbytes(b - a), chance.randbytes(1)[: b - a] + data[a + 1 : b]]
            if not same_length:
                new += [b"", bytes(b - a), data[a:b] * chance.choice([2, 4, 1001]), data[a:b]]
            i = chance.randrange(len(new))
            data = data[:a] + new[i] + (data[b:] if i < 5 else b"")  # the last one cuts the file
        return data

    def json(self, data):
        chance, content = self.chance, json.loads(data)
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            holder, key = self.place(content)
            if holder is None:
                content = self.value(content)
                break
            kind = chance.randrange(8)
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[str(self.value(key))[:300]] = holder.pop(key)
            elif kind == 2:
                other, there = self.place(content)
                holder[key] = copy.deepcopy(content if other is None else other[there])
            else:
                holder[key] = self.value(holder[key])
        text = json.dumps(content)
        if chance.random() < 0.1:  # a repeated key
            i = text.index("{") + 1 if "{" in text else 0
            text = text[:i] + text[i:].split(",")[0] + "," + text[i:]
        if chance.random() < 0.05:
            text = text.replace(chance.choice(["1", "2", "0", "true", "null"]), chance.choice(
                ["[" * 5000, '{"a":' * 100_000, "9" * 6000, "1e999", "NaN", "-Infinity", "\x00"]
            ), 1)  # fmt: skip
        return text.encode("utf-8", errors="surrogatepass")

    def place(self, content):
        """-> (a list or dictionary somewhere inside, key in it), or (None, None) for `content`."""
        holder = key = None
        while isinstance(content, dict | list) and content:
            if holder is not None and self.chance.random() < 0.2:
                break
            holder = content
            keys = list(content) if isinstance(content, dict) else range(len(content))
            key = self.chance.choice(keys)
            content = holder[key]
        return holder, key

    def value(self, old):
        chance = self.chance
        if isinstance(old, int | float) and chance.random() < 0.5:
            return chance.choice([old + 1, old - 1, -old, old * 2, old // 2, old + 0.5, float(old)])
        return chance.choice([
            0, 1, -1, 3, 2**31, 2**31 - 1, 2**53, 2**63, 2**64 - 1, 10**30, -(2**63), 1e308, 1e-308,
            1.5, True, False, None, "", "a", "a" * 5000, "/etc/passwd", "../x.safetensors", "\x00",
            "\ud800", "F64", "I8", "F8_E4M3", "BF16", "llama3", "yarn", "LlamaForCausalLM", [],
            {}, [[]], [0], [1] * 9, [24, 24], [-1, -24], [2**40, 2**40], [0, 0], [2**62, 2**63],
            {"a": 0}, {"dtype": "BF16", "shape": [24], "data_offsets": [0, 48]},
            {"factor": 1e-30}, old,
        ])  # fmt: skip


def try_one(folder):
    """Load a folder and use it -> "loaded" or "refused"; other errors are raised."""
    try:
        weights, config, tokenizer = load(folder)
        for name, shape in weight_shapes(config).items():
            assert tuple(weights[name].shape) == shape, name
        ids = tokenizer.encode(PROMPT)
        tokenizer.decode(ids), list(tokenizer.stream(ids))
        with torch.inference_mode():
            logits = forward(weights, torch.tensor(ids[-1:]) % config.vocab_size, config)
        assert logits.shape == (1, config.vocab_size)
    except InputError as error:
        assert 10 < len(str(error)) < 3000, error  # short enough to read
        return "refused"
    return "loaded"


def run(n_inputs, seed, mutant=""):
    """Try n_inputs spoiled files -> {"tried", "refused", "loaded", "escaped": [...]}."""
    import resource  # not on Windows

    if mutant:  # the control: a loader that forgot some kinds of errors
        huggingface.BAD_FILE = huggingface.SafetensorError
    with tempfile.TemporaryDirectory() as made:
        paths = checkpoints(Path(made))
        assert {try_one(path.parent) for path in paths} == {"loaded"}  # unspoiled files load
        here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (here + MOST_MEMORY, here + MOST_MEMORY))
        spoil, counts, escaped = Spoiler(seed), collections.Counter(), []
        for i in range(n_inputs):
            path = spoil.chance.choice(paths)
            whole = path.read_bytes()
            spoiled = spoil(path, whole)
            path.write_bytes(spoiled)
            faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
            try:
                counts[try_one(path.parent)] += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # Rust's panics are not Exceptions
                where = traceback.format_exc().strip().split("\n")[-12:]
                name = f"{i} {path.parent.name}/{path.name}: {type(error)} "
                escaped.append(name + "\n".join(where))
            faulthandler.cancel_dump_traceback_later()
            path.unlink()  # a mapping of it may still exist
            path.write_bytes(whole)
    return {"tried": n_inputs, **counts, "escaped": escaped}


def in_a_process(*arguments):
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True,
        timeout=280, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory limit needs Linux")


@pytest.mark.thorough
def test_spoiled_files_raise_only_input_errors(record_property):
    counts = in_a_process(N_INPUTS, SEED)
    record_property("inputs tried", counts["tried"])
    print(counts)
    assert counts["tried"] == N_INPUTS and not counts["escaped"], counts["escaped"][:3]
    assert counts["refused"] > N_INPUTS / 2 and counts["loaded"] > N_INPUTS / 50


def test_an_error_that_escapes_is_found():
    """The control: a loader without one of its `except` kinds."""
    assert in_a_process(300, SEED, "mutant")["escaped"]


def in_time(seconds, function, *arguments):
    """Call function; a call that waits longer than that ends with TimeoutError."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        return function(*arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


PLACED = {  # in place of a file: (how it is made, what the message says)
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    "a folder": (Path.mkdir, "it is a folder"),
    "a file that is too long": (
        lambda path: (path.touch(), os.truncate(path, 10**8 + 1)), "0,000 bytes: is it another"),
}  # fmt: skip


@pytest.mark.parametrize("placed", PLACED)
def test_only_files_are_read(tmp_path, placed):
    """None of a checkpoint's files may be a pipe, on which the program would wait for ever."""
    make, says = PLACED[placed]
    for path in checkpoints(tmp_path):
        if placed == "a file that is too long" and path.suffix in (".pth", ".safetensors"):
            continue
        kept = path.rename(path.with_suffix(".kept"))
        make(path)
        with pytest.raises(InputError, match=f"{path.name}.*{says}"):
            in_time(20, load, path.parent)
        path.rmdir() if path.is_dir() else path.unlink()
        kept.rename(path)
        load(path.parent)  # the control
    with pytest.raises(TimeoutError):  # the control: to read a pipe is to wait
        os.mkfifo(tmp_path / "pipe")
        in_time(1, (tmp_path / "pipe").read_bytes)


def test_many_faults_take_no_longer_than_their_number():
    """120,000 names, about as many as a header of 10 MB has."""
    config = Config(24, 2, 4, 2, helpers.BYTES.vocab_size, 7, 1e-5, 500000.0, 0.5)
    tensors = dict.fromkeys((f"layers.{i}" for i in range(120_000)), torch.ones(1))
    began = time.process_time()
    with pytest.raises(InputError, match="layers.0-119999 is not expected"):
        meta.check("a file", "settings", tensors, config)
    assert time.process_time() - began < 10  # each compared with each: over a minute


@pytest.mark.parametrize("kind", ["metas", "single"])
def test_a_number_with_more_digits_than_python_reads_is_a_name(tmp_path, kind):
    checkpoints(tmp_path)
    name = f"layers.{'9' * 5000}"
    if kind == "metas":
        torch.save({name: torch.ones(1)}, tmp_path / kind / helpers.PTH)
    else:
        tensors = {name: torch.ones(1) for name in (name, "a", "b")}
        save_file(tensors, tmp_path / kind / "model.safetensors")
    with pytest.raises(InputError, match="a name of 5,007 characters|layers.9+ is not expected"):
        load(tmp_path / kind)
    with pytest.raises(ValueError, match="limit"):  # the control
        int(name[7:])


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])))
