"""Check that a checkpoint is complete and consistent: `llama3-scratch verify DIR`.

`against` compares its answers with published ones and with those of Hugging Face's code.
"""

import functools
import hashlib
import os
import re
import tomllib
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from llama3_scratch import PROMPT
from llama3_scratch.checkpoint import gguf, pth
from llama3_scratch.checkpoint.packed import unpacked
from llama3_scratch.checkpoint.source import find, kind_of, tokenizer_of, weight_files
from llama3_scratch.config import PRESETS
from llama3_scratch.errors import (
    InputError,
    by_layer,
    read_file,
    require,
    require_file,
    short,
    visible,
)
from llama3_scratch.generate import generate
from llama3_scratch.tokenizer import Tokenizer

# The tokenizer of Llama 3, 3.1 and 3.2 alike: `llama3/tokenizer.model` in Meta's package
# llama-models 0.3.0. It gives the prompt these ids; no other vocabulary has the first one.
TOKENIZER_SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
PROMPT_IDS = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395]
PROMPT_IDS += [374, 220]
FILES = ("params.json", "config.json", "tokenizer.*", "*.pth", "*.safetensors", "*.index.json")
HASH = "[0-9a-fA-F]{32}|[0-9a-fA-F]{64}"  # MD5, SHA-256
KNOWN = Path(__file__).with_name("known.toml")  # published hashes, sizes, ids and answers
SETTINGS = "rope_scaling", "rope_theta", "norm_eps", "tied_output"


class NothingKnown(Exception):
    """There is nothing to compare with; the text says what was found."""


def checks(directory):
    """What `load` takes -> a generator of (verdict, what, text), one for each check.

    verdict: "ok", "FAULT", or "skipped" where nothing is known to compare with, or where a fault
    already reported prevents the check. Every byte is read, one tensor at a time; the last check
    runs the prompt through the model. Control characters are shown as escapes.
    """
    for verdict, what, text in _checks(directory):
        yield verdict, visible(what).replace("\n", "\\n"), visible(text)


def _checks(directory):
    found = []  # so that the files of a folder are looked at even if its settings are not readable

    def settings():
        found.append(find(directory))
        return kind_of(found[0]).read_config(found[0])

    say = "{0.n_parameters:,} parameters in {0.n_layers} layers".format
    config = yield from _check("config", settings, say)
    place = found[0] if found else Path(os.path.expanduser(directory))
    folder = place.parent if place.is_file() else place
    listed = {}
    if os.path.lexists(path := folder / "checklist.chk"):
        listed = (yield from _check(path.name, _checklist, ", ".join, path)) or {}
    near = released(config) if config else []
    llama_3 = config and config.vocab_size == PRESETS["Llama-3-8B"].vocab_size
    own = {"tokenizer.model": TOKENIZER_SHA256} if llama_3 else {}
    if folder == place:
        names = {path.name for pattern in FILES for path in folder.glob(pattern)}
    else:
        names = {part.name for part in (gguf.parts_of(place) if config else [place])}
    names |= listed.keys()
    before = {name: _state(folder / name) for name in sorted(names)}
    for name in before:
        yield from _check(name, _file, str, folder, name, listed, own, near)
    if near:
        yield from _check("model", _model, str, place, config)
    yield from _check("RoPE", _rope, str, config)
    say = "names and shapes as in the config, {0[norm.weight].dtype}".format
    weights = yield from _check("tensors", _weights, say, place, config)
    weights = yield from _check("values", _finite, lambda _: "every number is finite", weights)
    say = "{0.vocab_size:,} tokens".format
    tokenizer = yield from _check("tokenizer", tokenizer_of, say, place, config)
    says = yield from _check("prompt", _prompt, str, tokenizer)
    if says and tokenizer.encode(PROMPT) == PROMPT_IDS:
        yield from _check("ids", _ids, str, tokenizer)
    yield from _check("next token", _next_token, str, weights, tokenizer, config)
    changed = [name for name, state in before.items() if _state(folder / name) != state]
    if changed:
        names = ", ".join(map(short, changed[:3]))
        text = f"{len(changed)} files changed while the checks ran, {names}: wait until no program "
        yield "FAULT", "unchanged", text + "writes into the folder, and verify again."


def _state(path):
    """Return the size of a file and the time when it was written, None if it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _check(what, check, say, *arguments):
    """Run a check and yield its line; `say` describes its result. Returns the result, or None."""
    if any(argument is None for argument in arguments):
        yield "skipped", what, "not checked, because of a fault above"
        return None
    try:
        value = check(*arguments)
    except NothingKnown as found:
        yield "skipped", what, str(found)
    except InputError as error:
        yield "FAULT", what, str(error)
    except OSError as error:
        yield "FAULT", what, f"{error.filename} cannot be read ({error.strerror})."
    else:
        yield "ok", what, say(value)
        return value


def _weights(place, config):
    return kind_of(place).read_weights(place, config)


def _finite(weights):
    check_finite(unpacked(weights))
    return weights


def check_finite(weights):
    """Raise `InputError` with the names of all tensors that hold a NaN or an infinity."""
    # The smallest and the largest value suffice, and need no copy (with a NaN both are NaN).
    bad = [name for name in weights if not all(end.isfinite() for end in weights[name].aminmax())]
    require(
        not bad,
        "the checkpoint has values that are not finite (NaN or infinity), so its results are "
        f"meaningless. Download it again. Tensors:\n{by_layer([(name, '') for name in bad])}",
    )


def _checklist(path):
    """`checklist.chk`, in any form that md5sum or sha256sum takes -> {path in the folder: hash}."""
    listed = {}
    lines = read_file(path).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        text, hash, name = line.strip(), "", ""
        if not text or text.startswith("#"):
            continue
        if entry := re.fullmatch(rf"\\?({HASH})(?: [ *]| )(.+)", text):
            hash, name = entry.groups()
        elif entry := re.fullmatch(rf"(?:MD5|SHA256) ?\((.+)\) ?= ({HASH})", text):  # BSD, macOS
            name, hash = entry.groups()
        file = PurePosixPath(name.replace("\\", "/"))
        require(
            name and "\0" not in name,
            f"line {number} is {short(line[:40])}: expected a file's MD5 or SHA-256, two spaces "
            "and its name. Download the list again.",
        )
        inside = not file.is_absolute() and ".." not in file.parts
        inside = inside and not PureWindowsPath(name).drive
        require(inside, f"line {number} names {short(name)}: expected a file in the folder.")
        require(str(file) not in listed, f"line {number} names {short(name)} a second time.")
        listed[str(file)] = hash.lower()
    require(listed, "the list is empty. Download it again.")
    return listed


def _file(folder, name, listed, own, near):
    """Compare a file with what is known about it: hashes, CRC-32, those of released models."""
    path = (folder / name).absolute()
    require_file(path)
    size = os.path.getsize(path)
    claims = {
        "checklist.chk": listed.get(name, ""),
        "Llama 3's own file": own.get(name, ""),
        "huggingface_hub's cache": path.resolve().name,
    }
    for base in path.parents[:2]:  # with --local-dir huggingface_hub keeps a note of each file
        note = base / ".cache/huggingface/download" / f"{path.relative_to(base)}.metadata"
        if note.is_file():
            noted = read_file(note).decode(errors="replace").split()
            claims["huggingface_hub's note"] = noted[1] if len(noted) > 1 else ""
    claims = {source: known for source, known in claims.items() if re.fullmatch(HASH, known)}
    says = [f"{size:,} bytes"]
    for source, known in claims.items():
        kind = "md5" if len(known) == 32 else "sha256"
        found = digest(path, kind)
        require(found == known, f"{size:,} bytes, {kind} {found}, but in {source} it is {known}. "
                "Download it again.")  # fmt: skip
        says.append(f"{kind} as in {source}")
    require(size, "0 bytes. Download it again.")
    if any(m["files"] for m in near) and name.endswith((".pth", ".safetensors")):
        model = next((m for m in near if digest(path, "sha256") in m["files"]), None)
        says += [f"sha256 of {model['name']} ({model['source']})"] if model else []
    if (records := _right_records(path) if name.endswith(".pth") else 0) > 0:
        says.append(f"CRC-32 of {records} records")
    if len(says) > 1:
        return ", ".join(says)
    for entry in known_facts()["size"]:
        if entry["bytes"].get(name) == size and any(m["preset"] in entry["presets"] for m in near):
            says.append(f"as many as in {entry['source']}")
    raise NothingKnown(", ".join([*says, "no hash is known to compare with"]))


@functools.cache
def _digest(path, kind, state):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def digest(path, kind):
    """Return a file's hash in hexadecimal digits, which is computed once as long as it stays."""
    return _digest(path, kind, _state(path))


def _right_records(path):
    """Compare the CRC-32 of each record of a .pth -> their number, 0 where that is not possible.

    A file that is not as torch.save writes it is reported when its tensors are read. Where no
    record has a CRC-32, torch.save was told to leave them out (`set_crc32_options`).
    """
    try:
        pth.check(path)
    except Exception:
        return 0
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if not any(entry.CRC for entry in entries):
            return 0
        for entry in entries:
            try:
                with archive.open(entry) as record:
                    while record.read(2**20):
                        pass
            except zipfile.BadZipFile as error:
                raise InputError(
                    f"{os.path.getsize(path):,} bytes, but those of the record "
                    f"{short(entry.filename)} are not the ones that were saved ({error}). "
                    "Download it again."
                ) from None
    return len(entries)


@functools.cache
def _read_known(path):
    return tomllib.loads(path.read_text(encoding="utf-8"))


def known_facts():
    """Return the content of known.toml: lists of "model", "size", "ids" and "answer"."""
    return _read_known(KNOWN)


def released(config):
    """Return the released models that have a config's sizes, as known.toml lists them."""
    return [model for model in known_facts()["model"]
            if PRESETS[model["preset"]].sizes == config.sizes]  # fmt: skip


def identified(place, config):
    """Files of weights -> {name of a file: the released model whose file it is, or None}."""
    owners = {hash: model for model in released(config) for hash in model["files"]}
    paths = [path.absolute() for path in weight_files(place)]
    return {path.name: owners and owners.get(digest(path, "sha256")) for path in paths}


def _model(place, config):
    """Say which released model the weights are, and compare its settings."""
    found = identified(place, config)
    models = {model["name"]: model for model in found.values() if model}
    near = ", ".join(model["name"] for model in released(config))
    if not models:
        raise NothingKnown(
            f"sizes of {near}; the hashes of the weights are not known, as for a fine-tune, "
            "another revision or a converted file"
        )
    parts = "; ".join(f"{name} is {model['name'] if model else 'unknown'}"
                      for name, model in found.items())  # fmt: skip
    require(
        len(models) == 1 and all(found.values()),
        f"the files of weights are not all of one model, by their hashes: {parts}. Download the "
        "others again, unless you changed them.",
    )
    ((name, model),) = models.items()
    right = PRESETS[model["preset"]]
    wrong = [f"{key} is {getattr(config, key)}, expected {getattr(right, key)}"
             for key in SETTINGS if getattr(config, key) != getattr(right, key)]  # fmt: skip
    require(not wrong, f"the weights are those of {name}, but in the settings {'; '.join(wrong)}.")
    return f"{name}, by the hashes of its weights ({model['source']})"


def _rope(config):
    """Compare the scaling with that of the one or two released models of the same sizes."""
    known = {name: p.rope_scaling for name, p in PRESETS.items() if p.sizes == config.sizes}
    here = config.rope_scaling
    if not known:
        raise NothingKnown(f"{here or 'not scaled'}; no Llama 3 has these sizes")
    right = " and ".join(f"{name} ({scaling or 'not scaled'})" for name, scaling in known.items())
    text = f"{here or 'not scaled'}; released with these sizes: {right}"
    require(here in known.values(), text)
    return text


def _prompt(tokenizer):
    """Encode the book's prompt: compare Llama 3's ids; decode those of other tokenizers."""
    ids = tokenizer.encode(PROMPT)
    if ids[:1] == PROMPT_IDS[:1]:
        require(ids == PROMPT_IDS, f"the ids are {ids}: expected {PROMPT_IDS}")
        return f"the {len(ids)} ids of Llama 3"
    back = tokenizer.decode(plain := tokenizer.encode(PROMPT, bos=False))
    same = tokenizer.encode(back, bos=False) == plain  # some tokenizers tidy white space
    require(same and len(back) >= len(PROMPT) - 1, f"{PROMPT!r} is decoded as {back!r}")
    return f"{len(ids)} ids, which decode to the prompt"


def _ids(tokenizer):
    """Compare the ids of texts with the published ones of Llama 3's tokenizer."""
    sources, ours = {}, isinstance(tokenizer, Tokenizer)
    for entry in known_facts()["ids"]:
        if "chat" in entry and not ours:
            continue
        text = entry.get("text", entry.get("chat"))
        found = (tokenizer.encode_chat(text) if "chat" in entry
                 else tokenizer.encode(text, bos=False))  # fmt: skip
        require(
            found == entry["ids"],
            f"{short(text)} has the ids {found}: expected {entry['ids']} ({entry['source']})",
        )
        sources[entry["source"]] = sources.get(entry["source"], 0) + 1
    return "as published: " + ", ".join(f"{n} of {source}" for source, n in sources.items())


def _next_token(weights, tokenizer, config):
    """Run the prompt through the model and say which token is the likeliest next one."""
    ids = tokenizer.encode(PROMPT)[: config.context_length - 1]
    (token,) = generate(weights, ids, config, 1)
    return f"{token}, {tokenizer.decode([token])!r}, after the prompt"
