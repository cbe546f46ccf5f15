"""The history of a training: a lesser tiny model from two seeds, measured at twelve steps.

    python -m llama3_scratch.tiny.history --out build/tiny-history

Each seed is trained as by `make tiny-quick`, with the functions of `pretrain`. The weights after
some of the steps are saved as checkpoints in bfloat16, as the shipped model is (`seed-0/step-0600`,
which `load` reads), and measured as saved. All measures go into `history.json`, which also ships
with the package: `read()` returns it. A command that was stopped continues from its last saved
state. The same machine and number of threads give the same bytes.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from random import Random

import torch

from llama3_scratch.checkpoint import load
from llama3_scratch.checkpoint.files import finish, locked, written_whole
from llama3_scratch.errors import InputError, read_file, require
from llama3_scratch.tiny import world
from llama3_scratch.tiny.heads import heads
from llama3_scratch.tiny.pretrain import (
    CONFIG,
    SEED_STRIDE,
    SKILLS_SEED,
    STATE,
    Validation,
    encode,
    load_state,
    make_tokenizer,
    means,
    reproducible,
    save_rounded,
    save_state,
    steps_left,
    training_rows,
    versions,
)
from llama3_scratch.tiny.skills import read as read_rows
from llama3_scratch.tiny.skills import skills
from llama3_scratch.tokenizer import N_SPECIAL
from llama3_scratch.train import IGNORED, make_optimizers, start_weights

SETTINGS = {"steps": 2200, "rows": 4, "length": 256}  # those of `make tiny-quick`
CHECKPOINTS = (0, 50, 100, 200, 300, 450, 600, 800, 1000, 1300, 1700, 2200)
KINDS = tuple(world.LATE)  # the kinds of document in the training text
SHIPPED = Path(__file__).parent / "history.json"


def read(path=SHIPPED):
    """Return the content of a `history.json`, by default the one that ships with the package.

    settings      of the training and of the measures
    kinds, floor  kinds of document; {kind: the floor of its loss}, in nats a token
    held_out_floor, uniform, unigram, bigram
                  of the held-out text, in nats a token: its floor; the loss of predictors that know
                  nothing, the frequency of each token, the frequency of each pair of tokens
    runs          for each seed: seed; training, [step, mean loss, mean floor] since the last row;
                  checkpoints: for each step held_out and repeats (as `Validation` measures them),
                  loss {kind: nats a token}, skills {label: share of right answers}, heads
                  {pattern: [L][N] mean attention probabilities}
    """
    return json.loads(Path(path).read_text(encoding="utf-8"))


# --- Training -------------------------------------------------------------------------------------


def train(folder, settings, config, checkpoints, every=100):
    """Train one seed, and save the weights after the steps in `checkpoints`, in `folder`.

    The state is saved there and after every `every` steps; a run that was stopped continues from
    it. `training.json` is written last, then the state is removed; a finished run stays as it is.
    Raises `InputError` as `pretrain.train` does.
    """
    folder = Path(folder)
    with locked(folder):
        finish(folder)
        path = folder / STATE
        if _finished(folder, settings):
            path.unlink(missing_ok=True)  # left by a command that was stopped right before its end
            return
        seed, losses = settings["seed"], torch.zeros(settings["steps"], 2)
        tokenizer = make_tokenizer(config.vocab_size - N_SPECIAL)
        weights = start_weights(config, seed)
        optimizers = make_optimizers(weights)
        log = {"settings": settings, "step": 0, "held_out": []}
        if path.exists():
            log = load_state(path, settings, weights, optimizers, losses)
        how = "continues" if path.exists() else "starts from nothing"
        print(f"seed {seed}: training {how}, at step {log['step']}", file=sys.stderr)
        if log["step"] == 0:
            save_rounded(step_folder(folder, 0), weights, config, tokenizer)
        for step, _ in steps_left(log, losses, weights, optimizers, config, tokenizer):
            if step in checkpoints:
                save_rounded(step_folder(folder, step), weights, config, tokenizer)
            if step in checkpoints or step % every == 0:
                save_state(path, log, weights, optimizers, losses)
        curve = list(means(losses, points=100))
        _write(folder, "training.json", {"settings": settings, "training": curve})
        path.unlink()


def step_folder(folder, step):
    """Return the folder of the checkpoint after this step of a run."""
    return Path(folder) / f"step-{step:04}"


def _finished(folder, settings):
    """Whether a folder holds a finished run. Raises `InputError` if it is damaged or another's."""
    path = folder / "training.json"
    if not path.exists():
        return False
    found = _parsed(path).get("settings")
    require(
        found == settings,
        f"{path} belongs to a run with other settings ({found}): change --out, or remove {folder}.",
    )
    return True


# --- Measures -------------------------------------------------------------------------------------


def loss_by_kind(model, n_documents):
    """Model -> {kind: (loss, floor)} in nats per token, over whole documents.

    The floor of a kind counts, like those of `documents`, -ln of the kind's share at the end of
    training: a model must find out which kind it reads.
    """
    random, shares, table = Random(SKILLS_SEED).random, world.mixture(1.0), {}
    for kind in KINDS:
        documents = [world.document(random, kind) for _ in range(n_documents)]
        results = read_rows(model, [encode(document, model[2])[0] for document in documents])
        losses = torch.cat([loss for loss, _ in results])
        nats = sum(document.nats - math.log(shares[kind]) for document in documents)
        table[kind] = float(losses.mean()), nats / len(losses)
    return table


def measure(model, validation, n_documents):
    """Model, held-out text, documents of each kind -> one entry of `checkpoints` in `read`."""
    held_out, repeats = validation.measure(model[0])
    return {
        "held_out": held_out,
        "loss": {kind: loss for kind, (loss, _) in loss_by_kind(model, n_documents).items()},
        "skills": {name: skill.right for name, skill in skills(model, n_documents).items()},
        "heads": {name: scores.tolist() for name, (scores, _) in heads(model, n_documents).items()},
        "repeats": repeats,
    }


def frequencies(tokenizer, batch, settings, size):
    """Tokenizer, held-out (inputs, targets) -> their loss under a unigram and a bigram model.

    Both count the training text of this seed, all of its steps. The unigram model adds 1 to the
    count of each token. The bigram model adds to the counts of what follows a token one more token,
    divided as the unigram model says; so a pair that never occurred is possible. In nats per token.
    """
    steps, rows, length, seed = (settings[key] for key in ("steps", "rows", "length", "seed"))
    pairs = torch.zeros(size * size, dtype=torch.float64)
    for step in range(steps):
        text_seed, progress = seed * SEED_STRIDE + step, step / steps
        ids, _ = training_rows(tokenizer, rows, length, text_seed, progress)
        pairs += torch.bincount((ids[:, :-1] * size + ids[:, 1:]).flatten(), minlength=size * size)
    pairs = pairs.view(size, size)  # [token, the next one]
    singles = (pairs.sum(0) + 1) / (pairs.sum() + size)
    follows = (pairs + singles) / (pairs.sum(1, keepdim=True) + 1)
    inputs, targets = (ids[batch[1] != IGNORED] for ids in batch)
    unigram, bigram = singles[targets], follows[inputs, targets]
    return tuple(-float(probabilities.log().mean()) for probabilities in (unigram, bigram))


# --- The command ----------------------------------------------------------------------------------


def history(out, seeds=(0, 1), config=CONFIG, checkpoints=CHECKPOINTS, n_documents=120, **training):
    """Train the seeds that are not yet trained, measure them, and write `history.json` into `out`.

    training: steps, rows, length; the last of `checkpoints` is the number of steps. Returns the
    content of the file. Raises `InputError` as `train` does, or if a saved file is damaged.
    """
    out, common = Path(out), SETTINGS | training
    common |= {"params": config.to_params(), "threads": torch.get_num_threads(), **versions()}
    del common["command"]
    for seed in seeds:
        train(out / f"seed-{seed}", common | {"seed": seed}, config, checkpoints)
    runs = []
    for seed in seeds:
        folder = out / f"seed-{seed}"
        measured = _measured(folder, checkpoints, n_documents)
        curve = _parsed(folder / "training.json")["training"]
        runs.append({"seed": seed, "training": curve, "checkpoints": measured})
    model = load(step_folder(out / f"seed-{seeds[0]}", checkpoints[-1]), dtype=torch.float32)
    validation = Validation(model.tokenizer, config)
    print("counting the training text", file=sys.stderr)
    unigram, bigram = frequencies(
        model.tokenizer, validation.batch, common | {"seed": seeds[0]}, config.vocab_size
    )
    floors = {kind: floor for kind, (_, floor) in loss_by_kind(model, n_documents).items()}
    settings = common | {"checkpoints": list(checkpoints), "documents": n_documents}
    content = {
        "kinds": list(KINDS), "floor": floors, "held_out_floor": validation.floor,
        "unigram": unigram, "bigram": bigram, "uniform": math.log(config.vocab_size), "runs": runs,
    }  # fmt: skip
    _write(out, SHIPPED.name, {"settings": settings} | _rounded(content))
    return read(out / SHIPPED.name)


def _measured(folder, checkpoints, n_documents):
    """Measure the checkpoints of one run; those that `measured.json` holds are not measured again.

    The file is written after each of them, so that a command that was stopped continues.
    """
    path = folder / "measured.json"
    found = _parsed(path) if path.exists() else {}
    known = found.get("checkpoints", []) if found.get("documents") == n_documents else []
    done = {entry["step"]: entry for entry in known}
    validation = None
    for step in checkpoints:
        if step not in done:
            model = load(step_folder(folder, step), dtype=torch.float32)
            validation = validation or Validation(model.tokenizer, model.config)
            done[step] = {"step": step} | measure(model, validation, n_documents)
            loss = done[step]["held_out"]
            print(f"{folder.name}, step {step}: held out {loss:.4f}", file=sys.stderr)
            entries = [done[key] for key in sorted(done)]
            _write(folder, path.name, {"documents": n_documents, "checkpoints": entries})
    return [done[step] for step in checkpoints]


def _parsed(path):
    """Read a JSON file that this command wrote -> a dict. Raises `InputError` if it is damaged."""
    try:
        content = json.loads(read_file(path))
        require(isinstance(content, dict), "not an object")
    except (InputError, ValueError, RecursionError):
        raise InputError(
            f"{path} is empty or damaged: remove it, and run the same command again."
        ) from None
    return content


def _write(folder, name, content):
    """Write a dict as a JSON file, whole or not at all; one line for each checkpoint and curve."""
    with written_whole(folder) as new:
        (new / name).write_text(_lines(content) + "\n")


def _lines(value, depth=3):
    """JSON with a line for each entry of the outer `depth` levels of dicts and lists of dicts."""
    if depth and isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {_lines(entry, depth - 1)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(entries) + "\n}"
    if depth and isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(_lines(entry, depth) for entry in value) + "\n]"
    return json.dumps(value)


def _rounded(value):
    """Round all floats in nested dicts and lists to 4 decimals."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value


def main(arguments=None):
    """Run the command line: check its arguments, then train and measure."""
    parser = argparse.ArgumentParser(description="Train a lesser tiny model; measure its history.")
    parser.add_argument("--out", required=True, help="folder for checkpoints and history.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds, one run each")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (changes the bits)")
    given = parser.parse_args(arguments)
    try:
        require(given.threads > 0, f"--threads is {given.threads}: expected 1 or more.")
        for seed in given.seeds:
            require(0 <= seed < 10**6, f"--seeds: {seed} is not one of 0 to 999,999.")
        require(len(set(given.seeds)) == len(given.seeds), "--seeds names a seed twice.")
        reproducible(given.threads)
        history(given.out, tuple(given.seeds))
        print(f"{Path(given.out) / SHIPPED.name} is written")
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped: the same command continues from the last saved state")


if __name__ == "__main__":
    main()
