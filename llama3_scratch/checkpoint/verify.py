"""Check that a checkpoint is complete and consistent: `python -m llama3_scratch verify DIR`."""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from llama3_scratch import PROMPT
from llama3_scratch.checkpoint.source import find, kind_of
from llama3_scratch.checkpoint.tokenizers import read_tokenizer
from llama3_scratch.config import PRESETS
from llama3_scratch.errors import InputError, by_layer, require, short

# The tokenizer of Llama 3, 3.1 and 3.2 alike: `llama3/tokenizer.model` in Meta's package
# llama-models 0.3.0. It gives the prompt these ids; no other vocabulary has the first one.
TOKENIZER_SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
PROMPT_IDS = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395]
PROMPT_IDS += [374, 220]
FILES = ("params.json", "config.json", "tokenizer.*", "*.pth", "*.safetensors", "*.index.json")
HASH = "[0-9a-fA-F]{32}|[0-9a-fA-F]{64}"  # MD5, SHA-256


class NothingKnown(Exception):
    """There is nothing to compare with; the text says what was found."""


def checks(directory):
    """What `load` takes -> a generator of (verdict, what, text), one for each check.

    verdict: "ok", "FAULT", or "skipped" where nothing is known to compare with, or where a fault
    already reported prevents the check. Every byte is read, one tensor at a time.
    """
    say = "{0.n_parameters:,} parameters in {0.n_layers} layers".format
    folder = Path(os.path.expanduser(directory))
    config = yield from _check("config", _config, say, directory)
    if config:
        folder = find(directory)
    listed = {}
    if os.path.exists(path := folder / "checklist.chk"):
        listed = (yield from _check(path.name, _checklist, ", ".join, path)) or {}
    llama_3 = config and config.vocab_size == PRESETS["Llama-3-8B"].vocab_size
    own = {"tokenizer.model": TOKENIZER_SHA256} if llama_3 else {}
    names = {path.name for pattern in FILES for path in folder.glob(pattern)}
    for name in sorted(names | listed.keys()):
        yield from _check(name, _file, str, folder, name, listed, own)
    yield from _check("RoPE", _rope, str, config)
    say = "names and shapes as in the config, {0[norm.weight].dtype}".format
    weights = yield from _check("tensors", _weights, say, folder, config)
    yield from _check("values", check_finite, lambda _: "every number is finite", weights)
    say = "{0.vocab_size:,} tokens".format
    tokenizer = yield from _check("tokenizer", _tokenizer, say, folder, config)
    yield from _check("prompt", _prompt, str, tokenizer)


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


def _config(directory):
    folder = find(directory)
    return kind_of(folder).read_config(folder)


def _weights(folder, config):
    return kind_of(folder).read_weights(folder, config)


def _tokenizer(folder, config):
    return read_tokenizer(folder, config, kind_of(folder).TOKENIZERS)


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
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
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
        require(inside, f"line {number} names {short(name)}: expected a file in the folder.")
        require(str(file) not in listed, f"line {number} names {short(name)} a second time.")
        listed[str(file)] = hash.lower()
    require(listed, "the list is empty. Download it again.")
    return listed


def _file(folder, name, listed, own):
    """Compare a file with the hashes that are known for it, from up to four sources."""
    path = (folder / name).absolute()
    size = os.path.getsize(path)
    claims = {
        "checklist.chk": listed.get(name, ""),
        "Llama 3's own file": own.get(name, ""),
        "huggingface_hub's cache": path.resolve().name,
    }
    for base in path.parents[:2]:  # with --local-dir huggingface_hub keeps a note of each file
        note = base / ".cache/huggingface/download" / f"{path.relative_to(base)}.metadata"
        if note.is_file():
            noted = note.read_text(errors="replace").split()
            claims["huggingface_hub's note"] = noted[1] if len(noted) > 1 else ""
    claims = {source: known for source, known in claims.items() if re.fullmatch(HASH, known)}
    for source, known in claims.items():
        kind = "md5" if len(known) == 32 else "sha256"
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        require(found == known, f"{size:,} bytes, {kind} {found}, but in {source} it is {known}. "
                "Download it again.")  # fmt: skip
    require(size, "0 bytes. Download it again.")
    if not claims:
        raise NothingKnown(f"{size:,} bytes, no hash is known to compare with")
    return f"{size:,} bytes, {kind} as in {source}"


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
