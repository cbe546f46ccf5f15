"""Pre-training the tiny Llama 3: from a seed to a checkpoint in Meta's files.

    python -m llama3_scratch.tiny.train --out build/tiny --resume

The model is the package's own `forward`, given a batch as its leading dimension and the fused
`attend`; the weights are a plain dict of float32 leaf tensors. One step: draw R rows of T + 1
tokens, compare each prediction with the token that follows (cross-entropy), follow the gradient.

Nothing depends on what came before but the weights and the two optimizers: the rows of a step
come from (seed, step), the learning rate and the mixture of texts from step / steps. So a run that
was killed goes on from the last saved state and ends in the same bits, given the same machine and
number of threads.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import platform
import sys
import time
import zipfile
from itertools import accumulate, islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F

from llama3_scratch import checkpoint
from llama3_scratch.config import Config, InputError, require
from llama3_scratch.model import attend_fused, forward
from llama3_scratch.tiny import bpe, world
from llama3_scratch.tokenizer import N_SPECIAL, Tokenizer

# Llama 3 8B's ratios, and no two sizes alike: L 6, D 192, N 8, K 2, G 4, H 24, P 12, F 672.
CONFIG = Config(
    dim=192, n_layers=6, n_heads=8, n_kv_heads=2, vocab_size=2048, multiple_of=32,
    norm_eps=1e-5, rope_theta=500000.0, ffn_dim_multiplier=1.3,
)  # fmt: skip

MUON_RATE, ADAM_RATE, WEIGHT_DECAY, CLIP, WARM_UP = 0.01, 0.003, 0.05, 1.0, 100
IGNORED = -100  # the target that `cross_entropy` leaves out
STATE = "training.state.pt"  # in the output folder while the run is unfinished

# Seeds of text. Step i of seed s is written from s x SEED_STRIDE + i; the others are out of reach.
SEED_STRIDE = 10**7
TOKENIZER_SEED, HELD_OUT_SEED, SKILLS_SEED = 10**15, 10**15 + 1, 10**15 + 2


# --- Data -----------------------------------------------------------------------------------------


def make_tokenizer(n_ranks):
    """Number of ranks -> a tokenizer trained on the toy world's text, the same every time."""
    return Tokenizer(bpe.train(world.bpe_sample(TOKENIZER_SEED), n_ranks))


def encode(document, tokenizer):
    """A document alone -> its ids from begin_of_text to end_of_text, [(skill, start, stop)].

    start and stop count in ids: `ids[start:stop]` is the answer. Raises `InputError` where an
    answer does not begin and end with a token.
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
    """-> ids [R, T + 1], and the floor of their loss in nats a token.

    A row is begin_of_text, then whole documents, each with end_of_text, the last one cut where the
    row ends. The next row starts with a new document, so no prediction lacks its context, and
    begin_of_text stands first only, so it is never to be predicted.
    The floor is that of all documents that were begun: the cut ends are not weighed one by one.
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


def pad(rows):
    """Lists of ids of any lengths -> inputs [R, T], targets [R, T] (`IGNORED` after the end)."""
    longest = max(map(len, rows))
    inputs = torch.tensor([row[:-1] + [0] * (longest - len(row)) for row in rows])
    targets = torch.tensor([row[1:] + [IGNORED] * (longest - len(row)) for row in rows])
    return inputs, targets


# --- Loss -----------------------------------------------------------------------------------------


def loss_of(weights, inputs, targets, config):
    """[R, T], [R, T] -> the mean of -ln(probability of the target), in nats a token."""
    logits = forward(weights, inputs, config, attend=attend_fused)  # [R, T, V]
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


class Validation:
    """Documents of a seed that training never uses, each alone in its row, so none is cut.

    Short ones of few possible texts, quotations above all, occur in training as well.
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
        """-> the loss in nats a token, and the share of repeated tokens foretold (induction)."""
        inputs, targets = self.repeats
        foretold = forward(weights, inputs, self.config, attend=attend_fused).argmax(-1)
        right = (foretold == targets)[targets != IGNORED].float().mean()
        return float(loss_of(weights, *self.batch, self.config)), float(right)


# --- Start and steps ------------------------------------------------------------------------------


def start_weights(config, seed):
    """Config, seed -> {name: float32 leaf tensor}: where training starts.

    As `random_weights`, but for two things. The output matrix starts as a copy of the embeddings,
    scaled to logits of variance 1: a token then first expects its own like. And what is written to
    the stream is divided by sqrt(2L), because 2L sub-layers add up in it (GPT-2 does so).
    """
    weights = checkpoint.random_weights(config, seed)
    weights["output.weight"] = weights["tok_embeddings.weight"] / math.sqrt(config.dim)
    for name in weights:
        if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
            weights[name] /= math.sqrt(2 * config.n_layers)
        weights[name].requires_grad_()
    return weights


def make_optimizers(weights):
    """Weights -> [Muon, AdamW], which share them out. Only matrices decay, the embeddings do not.

    Muon (Jordan 2024) makes the update of a matrix nearly orthogonal, so that all its directions
    learn at one pace; it is for matrices between activations, so the layers' only. AdamW
    (Loshchilov and Hutter 2017, arXiv:1711.05101) has the two tables and the norms.
    """
    table, output = weights["tok_embeddings.weight"], weights["output.weight"]
    norms = [tensor for tensor in weights.values() if tensor.dim() == 1]
    matrices = [weights[n] for n in weights if n.startswith("layers") and weights[n].dim() == 2]
    muon = torch.optim.Muon(
        matrices, lr=MUON_RATE, momentum=0.95, weight_decay=WEIGHT_DECAY, adjust_lr_fn="original"
    )
    groups = [
        {"params": [output], "weight_decay": WEIGHT_DECAY},
        {"params": [table, *norms], "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.98))]


def rate_factor(step, steps):
    """By what the learning rates are multiplied: up for 100 steps, 1 up to half, then to 0."""
    return min(1.0, (step + 1) / WARM_UP, 2 * (1 - step / steps))


def train_step(weights, optimizers, ids, config, factor):
    """One update of the weights, in place, from ids [R, T + 1]. -> the loss before it."""
    loss = loss_of(weights, ids[:, :-1], ids[:, 1:], config)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
    for optimizer, rate in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


# --- A run ----------------------------------------------------------------------------------------


def train(out, steps, rows=8, length=256, seed=0, config=CONFIG, resume=False, every=250):
    """Train; write the checkpoint, `loss.svg` and `training.json` into the folder `out` -> log.

    rows R and length T of a step. After each `every` steps the held-out loss is measured and the
    state saved. With `resume` a saved state is gone on from; without, one that lies there is an
    error.
    """
    folder = Path(out)
    done = folder / "training.json"
    require(not done.exists(), f"{done} is of a finished run: remove {out}, or name another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}. Name a folder to write into.") from None
    settings = {"steps": steps, "rows": rows, "length": length, "seed": seed}
    settings["params"] = config.to_params()
    tokenizer = make_tokenizer(config.vocab_size - N_SPECIAL)
    validation = Validation(tokenizer, config)
    settings["text"] = hashlib.sha256(validation.batch[0].numpy()).hexdigest()[:16]
    weights = start_weights(config, seed)
    optimizers = make_optimizers(weights)
    losses = torch.zeros(steps, 2)  # of each step: loss, floor
    log = {"settings": settings, "step": 0, "held_out_floor": validation.floor, "held_out": []}
    path = folder / STATE
    if path.exists():
        require(resume, f"{path} is of an unfinished run: --resume goes on with it; or remove it.")
        log = load_state(path, settings, weights, optimizers, losses)
    session = {"from_step": log["step"], "seconds": 0.0, "threads": torch.get_num_threads()}
    log.setdefault("sessions", []).append(session | versions())
    started = time.monotonic()
    for step in range(log["step"], steps):
        ids, floor = training_rows(tokenizer, rows, length, seed * SEED_STRIDE + step, step / steps)
        loss = train_step(weights, optimizers, ids, config, rate_factor(step, steps))
        require(math.isfinite(loss), f"step {step}: the loss is {loss}. Lower the learning rates.")
        losses[step] = torch.tensor([loss, floor])
        log["step"] = step + 1
        report(log, losses, started)
        if (step + 1) % every == 0 or step + 1 == steps:
            held_out, repeats = validation.measure(weights)
            log["held_out"].append([step + 1, round(held_out, 5), round(repeats, 5)])
            more = f"held out {held_out:.4f} (floor {validation.floor:.4f}), repeats {repeats:.1%}"
            report(log, losses, started, more)
            save_state(path, log, weights, optimizers, losses)
    stored = {name: tensor.detach().bfloat16() for name, tensor in weights.items()}
    checkpoint.save(folder, stored, config, tokenizer)
    rounded = {name: tensor.float() for name, tensor in stored.items()}
    log["held_out_stored"] = validation.measure(rounded)
    log["training"] = list(means(losses))
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in log.items())
    draw_losses(log, folder / "loss.svg")
    done.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    path.unlink()
    return log


def save_state(path, log, weights, optimizers, losses):
    """Everything that a later step depends on. The old state stays until the new one is whole."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"log": log, "weights": weights, "optimizers": states, "losses": losses}
    unfinished = path.with_suffix(".part")
    try:
        torch.save(state, unfinished)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the second
        unfinished.unlink(missing_ok=True)
        reason = str(error).split("\n")[0][:80]
        raise InputError(f"{path} cannot be written ({reason}): is the disk full?") from None


def load_state(path, settings, weights, optimizers, losses):
    """Fill weights, optimizers and losses from a state -> its log. Raises `InputError`."""
    try:
        damaged = zipfile.ZipFile(path).testzip()  # by its checksums, which torch does not compare
        require(not damaged, f"{damaged} in it is damaged")
        state = torch.load(path, weights_only=True)
        log, found = state["log"], state["log"]["settings"]
        require({"step", "held_out", "sessions"} <= log.keys(), "its log is not whole")
        if found == settings:
            with torch.no_grad():
                for name in weights:
                    weights[name].copy_(state["weights"][name])
                losses.copy_(state["losses"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
    except Exception as error:  # a bad file raises many kinds
        reason = str(error).split("\n")[0][:80]
        raise InputError(f"{path} is no saved state ({reason}): remove it.") from None
    require(found == settings, f"{path} is of a run with {found}: expected {settings}.")
    return log


# --- Telling --------------------------------------------------------------------------------------


def report(log, losses, started, more=""):
    """One line about the run; losses are means of 50 steps. On a terminal with a bar."""
    step, session, settings = log["step"], log["sessions"][-1], log["settings"]
    session["seconds"] = time.monotonic() - started
    terminal = sys.stderr.isatty()
    if not (terminal or more or step % 50 == 0):
        return
    loss, floor = losses[max(0, step - 50) : step].mean(0).tolist()
    per_second = (step - session["from_step"]) / session["seconds"]
    minutes = (settings["steps"] - step) / per_second / 60
    bar = f"\r\033[K[{'=' * (10 * step // settings['steps']):10}]" if terminal else "step"
    line = f"{bar} {step}/{settings['steps']}  loss {loss:.3f} (floor {floor:.3f})  "
    line += f"{per_second * settings['rows'] * settings['length']:,.0f} tokens/s  "
    line += f"{minutes:.0f} min left  {more}"
    print(line.rstrip(), end="" if terminal and not more else "\n", file=sys.stderr, flush=True)


def versions():
    """What the bits of a result may depend on."""
    return {
        "command": " ".join(sys.argv[1:]), "torch": str(torch.__version__),
        "python": platform.python_version(), "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def means(losses, points=200):
    """[steps, 2] -> at most `points` rows: a step, the means over the steps before it."""
    stop = 0
    for part in losses.split(math.ceil(len(losses) / points)):
        stop += len(part)
        yield [stop, *(round(mean, 4) for mean in part.mean(0).tolist())]


def draw_losses(log, path):
    """The losses over the steps, with the floors under them, as a picture."""
    import matplotlib  # only here: what else this file holds is used without it
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


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the tiny Llama 3 on its toy world.")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=7000, help="updates of the weights")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--length", type=int, default=256, help="predicted tokens of a row")
    parser.add_argument("--seed", type=int, default=0, help="of the start and of the text")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the bits depend on it")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    given = vars(parser.parse_args(arguments))
    try:
        limits = {"steps": (1, SEED_STRIDE - 1), "rows": (1, 4096), "threads": (1, 256),
                  "length": (1, CONFIG.context_length), "seed": (0, 999_999)}  # fmt: skip
        for name, (least, most) in limits.items():
            value = given[name]
            require(least <= value <= most, f"--{name} is {value}: expected {least} to {most}.")
        muon = hasattr(torch.optim, "Muon")
        require(muon, f"torch {torch.__version__} has no torch.optim.Muon: 2.9 or later is needed.")
        require(
            importlib.util.find_spec("matplotlib"),
            "matplotlib, which draws the loss, is missing: pip install matplotlib",
        )
        torch.set_num_threads(given.pop("threads"))
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it costs 4 % and is no need
        train(**given)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped: --resume goes on from the last saved state, if there is one")


if __name__ == "__main__":
    main()
