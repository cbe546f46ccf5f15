"""Pre-training of the tiny Llama 3: from a seed to a checkpoint in Meta's files.

    python -m llama3_scratch.tiny.pretrain --out build/tiny --resume

Each step is a `train_step` of `llama3_scratch.train`. The only state that passes from one step to
the next is that of the weights and the two optimizers: the rows of a step are generated from (seed,
step), the learning rate and the mixture of texts depend on step / steps. A run that was killed
therefore resumes from its last saved state and ends in the same bits, on the same machine and with
the same number of threads.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import platform
import sys
import time
import zipfile
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from random import Random

import torch
from tqdm import tqdm

from llama3_scratch.checkpoint import save
from llama3_scratch.checkpoint.files import finish, locked, written_whole
from llama3_scratch.config import Config
from llama3_scratch.errors import InputError, first_line, read_file, require, require_file, short
from llama3_scratch.model import forward
from llama3_scratch.speed import attend_fused
from llama3_scratch.tiny import bpe, world
from llama3_scratch.tokenizer import N_SPECIAL, Tokenizer
from llama3_scratch.train import (
    IGNORED,
    loss_of,
    make_optimizers,
    pad,
    rate_factor,
    start_weights,
    train_step,
)

# The ratios of Llama-3-8B; all sizes differ: L 6, D 192, N 8, K 2, G 4, H 24, P 12, F 672.
CONFIG = Config(
    dim=192, n_layers=6, n_heads=8, n_kv_heads=2, vocab_size=2048, multiple_of=32,
    norm_eps=1e-5, rope_theta=500000.0, ffn_dim_multiplier=1.3,
)  # fmt: skip

STATE = "training.state.pt"  # the saved state of an unfinished run, in its output folder

# Seeds of the text. Step i of a run with seed s uses s * SEED_STRIDE + i, never one of the others.
SEED_STRIDE = 10**7
TOKENIZER_SEED, HELD_OUT_SEED, SKILLS_SEED = 10**15, 10**15 + 1, 10**15 + 2


# --- Data -----------------------------------------------------------------------------------------


def make_tokenizer(n_ranks):
    """Number of ranks -> a tokenizer trained on text of the toy world, always the same text."""
    return Tokenizer(bpe.train(world.bpe_sample(TOKENIZER_SEED), n_ranks))


def encode(document, tokenizer):
    """Document -> its ids from begin_of_text to end_of_text, its answers [(skill, start, stop)].

    start and stop count ids: `ids[start:stop]` is the answer. Raises `InputError` if an answer
    begins or ends inside a token.
    """
    ids = tokenizer.encode(document.text, bos=True)
    lengths = [len(tokenizer.token_bytes(token)) for token in ids[1:]]
    at = {byte: i for i, byte in enumerate(accumulate(lengths, initial=0), start=1)}
    answers = []
    for skill, *span in document.answers:
        start, stop = (at.get(len(document.text[:character].encode())) for character in span)
        require(start and stop, f"{document.text!r}: the answer at {span} does not fit the tokens.")
        answers.append((skill, start, stop))
    return ids + [tokenizer.special["<|end_of_text|>"]], answers


def training_rows(tokenizer, n_rows, length, seed, progress):
    """Number of rows R, length T -> ids [R, T + 1], and the floor of their loss in nats per token.

    A row holds begin_of_text, then documents, each followed by end_of_text; the last document is
    cut where the row ends. The next row starts with a new document, so every prediction has its
    context; begin_of_text is only ever the first token, so it is never a target. progress is the
    share of training that is done (0 to 1), which decides the mixture of texts.
    The floor is the entropy per token of all these documents, including the parts cut off.
    """
    end = tokenizer.special["<|end_of_text|>"]
    source = world.documents(seed, progress)
    rows, nats, n_tokens = [], 0.0, 0
    for _ in range(n_rows):
        row = [tokenizer.bos_id]
        while len(row) <= length:
            document = next(source)
            ids = tokenizer.encode(document.text, bos=False) + [end]
            nats, n_tokens = nats + document.nats, n_tokens + len(ids)
            row += ids
        rows.append(row[: length + 1])
    return torch.tensor(rows), nats / n_tokens


# --- Held-out text --------------------------------------------------------------------------------


class Validation:
    """Held-out text: documents from a seed that training never uses, each whole in its own row.

    Where only few texts are possible, above all for quotations, the same text occurs in training.
    """

    def __init__(self, tokenizer, config, n_documents=160, n_repeats=32):
        self.config = config
        documents = list(islice(world.documents(HELD_OUT_SEED, 1.0), n_documents))
        self.batch = pad([encode(document, tokenizer)[0] for document in documents])
        n_tokens = int((self.batch[1] != IGNORED).sum())
        self.floor = sum(document.nats for document in documents) / n_tokens  # nats a token
        random = Random(HELD_OUT_SEED).random
        repeats = [encode(world.document(random, "repeat"), tokenizer) for _ in range(n_repeats)]
        inputs, targets = pad([ids for ids, _ in repeats])
        repeated = torch.full_like(targets, IGNORED)
        for row, (_, answers) in enumerate(repeats):
            for _, start, stop in answers:
                repeated[row, start - 1 : stop - 1] = targets[row, start - 1 : stop - 1]
        self.repeats = inputs, repeated

    @torch.no_grad()
    def measure(self, weights):
        """Weights -> the loss in nats per token, the share of repeated tokens that are predicted.

        The second number rises when induction heads form.
        """
        inputs, targets = self.repeats
        predicted = forward(weights, inputs, self.config, attend=attend_fused).argmax(-1)
        right = (predicted == targets)[targets != IGNORED].float().mean()
        return float(loss_of(weights, *self.batch, self.config)), float(right)


# --- A run ----------------------------------------------------------------------------------------


def train(out, steps, rows=8, length=256, seed=0, config=CONFIG, resume=False, every=250):
    """Train, and write the checkpoint, `loss.svg` and `training.json` into the folder `out`.

    Each step has R = `rows` rows of T = `length` targets. After every `every` steps the held-out
    loss is measured and the state is saved. With `resume` the run continues from a saved state.
    All files are written whole. `training.json` is the last one; then the state is removed.
    Returns the log, which is also the content of `training.json`. Raises `InputError` if the folder
    holds a finished run, or an unfinished one without `resume` or with other settings; if the saved
    state cannot be read; if the folder cannot be written (what is saved in it stays as it is); if
    another program writes into it; if the loss is not finite.
    """
    settings = {"steps": steps, "rows": rows, "length": length, "seed": seed}
    settings["params"] = config.to_params()
    with locked(out):
        finish(out)
        return _train(Path(out), settings, config, resume, every)


def _train(folder, settings, config, resume, every):
    """Train into a locked folder; the arguments and the result are those of `train`."""
    path, done = folder / STATE, folder / "training.json"
    steps, seed = settings["steps"], settings["seed"]
    if done.exists():
        require(
            _is_log(done),
            f"{done} is empty or damaged: remove it, and run again with --resume. Training then "
            f"continues from {path}, or starts again if that is not there.",
        )
        raise InputError(f"{done} belongs to a finished run: remove {folder} or change --out.")
    tokenizer = make_tokenizer(config.vocab_size - N_SPECIAL)
    validation = Validation(tokenizer, config)
    settings["text"] = hashlib.sha256(validation.batch[0].numpy()).hexdigest()[:16]
    weights = start_weights(config, seed)
    optimizers = make_optimizers(weights)
    losses = torch.zeros(steps, 2)  # of each step: loss, floor
    log = {"settings": settings, "step": 0, "held_out_floor": validation.floor, "held_out": []}
    if path.exists():
        require(resume, f"{path} belongs to an unfinished run: add --resume, or remove it.")
        log = load_state(path, settings, weights, optimizers, losses)
    for step, tell in steps_left(log, losses, weights, optimizers, config, tokenizer):
        if step % every == 0 or step == steps:
            held_out, repeats = validation.measure(weights)
            log["held_out"].append([step, round(held_out, 5), round(repeats, 5)])
            more = f"held out {held_out:.4f} (floor {validation.floor:.4f}), "
            tell(more + f"repeats {repeats:.1%}")
            save_state(path, log, weights, optimizers, losses)
    stored = save_rounded(folder, weights, config, tokenizer)
    rounded = {name: tensor.float() for name, tensor in stored.items()}
    log["held_out_stored"] = validation.measure(rounded)
    log["training"] = list(means(losses))
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in log.items())
    with written_whole(folder) as new:
        draw_losses(log, new / "loss.svg")
        (new / done.name).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    path.unlink()
    return log


def steps_left(log, losses, weights, optimizers, config, tokenizer):
    """Train from the log's step to the last; after each step yield its number (from 1), `report`.

    Updates the log, losses [steps, 2] (each step's loss and floor), weights and optimizers. What is
    yielded as `report` prints a line with more text. Raises `InputError` if a loss is not finite.
    """
    settings = log["settings"]
    steps, rows, length, seed = (settings[key] for key in ("steps", "rows", "length", "seed"))
    session = {"from_step": log["step"], "seconds": 0.0, "threads": torch.get_num_threads()}
    log.setdefault("sessions", []).append(session | versions())
    with tqdm(total=steps, initial=log["step"], unit="step", disable=None) as bar:
        tell = partial(report, log, losses, time.monotonic(), bar)
        for step in range(log["step"], steps):
            text_seed, progress = seed * SEED_STRIDE + step, step / steps
            ids, floor = training_rows(tokenizer, rows, length, text_seed, progress)
            loss = train_step(weights, optimizers, ids, config, rate_factor(step, steps))
            where = f"seed {seed}, step {step}"
            require(math.isfinite(loss), f"{where}: the loss is {loss}. Lower the learning rates.")
            losses[step] = torch.tensor([loss, floor])
            log["step"] = step + 1
            tell()
            yield step + 1, tell


def save_rounded(folder, weights, config, tokenizer):
    """Save the weights as a checkpoint in bfloat16. Returns the rounded weights."""
    stored = {name: tensor.detach().bfloat16() for name, tensor in weights.items()}
    save(folder, stored, config, tokenizer)
    return stored


def _is_log(path):
    """Whether a file is the log of a finished run."""
    try:
        return "training" in json.loads(read_file(path))
    except (InputError, ValueError, TypeError, RecursionError):
        return False


def save_state(path, log, weights, optimizers, losses):
    """Save all that a later step depends on; replace the old state once the new one is complete.

    Raises `InputError` if the file cannot be written.
    """
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"log": log, "weights": weights, "optimizers": states, "losses": losses}
    with written_whole(path.parent) as new:
        torch.save(state, new / path.name)


def load_state(path, settings, weights, optimizers, losses):
    """Read a state into weights, optimizers and losses (in place). Returns its log.

    Raises `InputError` if the file is not a saved state, is damaged, or has other settings.
    """
    try:
        require_file(path)
        damaged = zipfile.ZipFile(path).testzip()  # compares the checksums; torch.load does not
        require(not damaged, f"its entry {damaged} is damaged")
        state = torch.load(path, weights_only=True)
        log, found = state["log"], dict(state["log"]["settings"])
        require({"step", "held_out", "sessions"} <= log.keys(), "its log is incomplete")
        if found == settings:
            require(log["step"] in range(settings["steps"] + 1), f"it is at step {log['step']}")
            with torch.no_grad():
                for name, tensor in [*weights.items(), ("losses", losses)]:
                    saved = state["losses"] if tensor is losses else state["weights"][name]
                    require(saved.shape == tensor.shape, f"{name} is {list(saved.shape)}")
                    tensor.copy_(saved)
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
                for tensor, kept in optimizer.state.items():
                    shapes = {value.shape for value in kept.values() if value.dim()}
                    require(shapes == {tensor.shape}, "an optimizer's state has other shapes")
    except Exception as error:  # a damaged file can raise almost any exception
        raise InputError(
            f"{path} is not a saved state of this model ({first_line(error)[:80]}): remove it to "
            "train from the start."
        ) from None
    others = [key for key in settings | found if found.get(key) != settings.get(key)]
    require(
        not others,
        f"{path} belongs to a run with other settings: "
        + ", ".join(f"{k} is {short(found.get(k))}, not {short(settings.get(k))}" for k in others)
        + ". Give the same settings, or change --out.",
    )
    return log


# --- Progress and results -------------------------------------------------------------------------


def report(log, losses, started, bar, more=""):
    """Show the progress of the run: a bar on a terminal, otherwise one line for every 50 steps.

    The losses are means over the last 50 steps. A line with `more` is always printed.
    """
    step, session, settings = log["step"], log["sessions"][-1], log["settings"]
    session["seconds"] = time.monotonic() - started
    loss, floor = losses[max(0, step - 50) : step].mean(0).tolist()
    text = f"loss {loss:.3f} (floor {floor:.3f})"
    bar.set_description(text, refresh=False)
    bar.update(step - bar.n)
    if more or (bar.disable and step % 50 == 0):
        per_second = (step - session["from_step"]) / session["seconds"]
        tokens = per_second * settings["rows"] * settings["length"]
        minutes = (settings["steps"] - step) / per_second / 60
        line = f"step {step}/{settings['steps']}  {text}  {tokens:,.0f} tokens/s  "
        bar.write(f"{line}{minutes:.0f} min left  {more}".rstrip(), file=sys.stderr)


def versions():
    """Return what the last bits of the result may depend on, besides the settings."""
    return {
        "command": " ".join(sys.argv[1:]), "torch": str(torch.__version__),
        "python": platform.python_version(), "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def means(losses, points=200):
    """[steps, 2] -> at most `points` rows [step, means over the steps since the last row]."""
    stop = 0
    for part in losses.split(math.ceil(len(losses) / points)):
        stop += len(part)
        yield [stop, *(round(mean, 4) for mean in part.mean(0).tolist())]


def draw_losses(log, path):
    """Draw the losses of a finished run and their floors over the steps; write an SVG to `path`."""
    import matplotlib  # imported here, because everything else in this file works without it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps, losses, floors = zip(*log["training"], strict=True)
    measured, held_out, _ = zip(*log["held_out"], strict=True)
    axes.plot(steps, losses, color="#3b528b", linewidth=1, label="training")
    axes.plot(steps, floors, color="#3b528b", linewidth=1, linestyle=":", label="its floor")
    axes.plot(measured, held_out, color="#c44e00", linewidth=1.8, label="held out")
    axes.axhline(log["held_out_floor"], color="#c44e00", linestyle=":", label="its floor")
    axes.set(xlabel="step", ylabel="loss, nats a token", ylim=(0, min(3.0, 1.05 * max(losses))))
    axes.legend(frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "loss"}):
        figure.savefig(path, metadata={"Date": None})


def reproducible(threads):
    """Set the number of CPU threads; use only algorithms that give the same bits each time."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # not needed; 4 % slower


def main(arguments=None):
    """Run the command line: check its arguments, then train."""
    parser = argparse.ArgumentParser(description="Train the tiny Llama 3 on its toy world.")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=7000, help="updates of the weights")
    parser.add_argument("--rows", type=int, default=8, help="rows per step")
    parser.add_argument("--length", type=int, default=256, help="predicted tokens per row")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and text")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (changes the bits)")
    parser.add_argument("--resume", action="store_true", help="resume an unfinished run")
    given = vars(parser.parse_args(arguments))
    try:
        for name in ("steps", "rows", "threads", "length"):
            require(given[name] > 0, f"--{name} is {given[name]}: expected 1 or more.")
        seed, length, most = given["seed"], given["length"], CONFIG.context_length
        require(0 <= seed < 10**6, f"--seed is {seed}: expected 0 to 999,999.")
        require(length <= most, f"--length is {length}: expected at most {most}.")
        require(
            importlib.util.find_spec("matplotlib"),
            "matplotlib, which draws the loss curve, is not installed: pip install matplotlib",
        )
        reproducible(given.pop("threads"))
        train(**given)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume continues from the last saved state, if there is one")


if __name__ == "__main__":
    main()
