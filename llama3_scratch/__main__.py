"""The command line: `llama3-scratch "some prompt"`, and the commands chat, verify and export."""

import argparse
import itertools
import json
import math
import os
import re
import secrets
import sys
import textwrap
import time
from dataclasses import replace

import torch

from llama3_scratch import (
    PROMPT,
    InputError,
    __version__,
    generate,
    load,
    model,
    parallel,
    pipeline,
    processes,
    shape,
    watch,
)
from llama3_scratch.chat import chat, speed, speed_text
from llama3_scratch.checkpoint import memory
from llama3_scratch.checkpoint.lazy import DTYPES
from llama3_scratch.checkpoint.source import opened
from llama3_scratch.checkpoint.templates import FORMATS, chat_format, read_template
from llama3_scratch.errors import require, visible
from llama3_scratch.generate import choose, chunk_size
from llama3_scratch.speed import attend_fused, quick
from llama3_scratch.watch import progress

LARGE = 500_000_000  # above this many parameters the memory plan is printed
SHOWN = 100  # tokens of a prompt that are printed
CHAT_ROOM = 256  # tokens of questions and answers that a chat's memory plan allows for
WATCHED = model.forward, model.block, model.attention
INDENT = {"initial_indent": "  ", "subsequent_indent": "  ", "break_long_words": False}
WHERE = (
    "Without --checkpoint the environment variable LLAMA3_CHECKPOINT names one; if it is not set, "
    "the tiny Llama 3 that ships with this package is used. "
)
ABOUT = {  # command: (what --help says first, and last)
    "": (
        "Run a prompt through Llama 3 and look inside: the tokens with their ids, the shape of "
        "each stage, the five likeliest next tokens, and then the text as it is generated.",
        WHERE + "The first word may be a command: 'chat', for a conversation; 'verify', to check a "
        "checkpoint's files; 'export', to write them in another form. Each has its own --help. To "
        "use one of these words as a prompt, put -- before it. If llama3-scratch is not found, "
        "'python -P -m llama3_scratch' is the same. A model that is too large for one device is "
        "split over several by 'torchrun --nproc-per-node 2 -m llama3_scratch', for chat too.",
    ),
    "chat": (
        "Talk with an Instruct model: each line is a message, and a line that ends with a "
        "backslash continues on the next; the answer appears as it is generated. Ctrl-C stops an "
        "answer, Ctrl-D (on Windows Ctrl-Z and Enter) the program. When the conversation outgrows "
        "the model's context, the oldest turns are dropped, with a notice.",
        WHERE + "The files do not say whether the weights are an Instruct model's; other models, "
        "including tiny, do not know the chat format and answer nonsense.",
    ),
    "verify": (
        "Check a checkpoint's files, one line for each check: sizes and hashes (from Meta's "
        "checklist.chk, recorded at the download, or published), CRC-32, the settings, names, "
        "shapes and types of the tensors, whether all numbers are finite, RoPE's scaling, the "
        "tokenizer, published ids of texts, and which token the model predicts after the prompt.",
        "The exit code is 0, or 2 if a line begins with FAULT. A check is 'skipped' if there is "
        "nothing to compare with. Every byte is read, which takes some minutes for 16 GB; with "
        "--against published or transformers the model also computes.",
    ),
    "export": (
        "Write a checkpoint in another form: 'huggingface' (a folder for transformers), 'gguf' (a "
        "file for llama.cpp and Ollama) or 'meta' (a folder with consolidated.00.pth).",
        "OUT is new: no file is ever replaced. What is written is complete, or it is not there.",
    ),
}  # fmt: skip


def parser(command=""):
    """Return the parser of a command's arguments, with the text of its `--help`."""
    description, epilog = ABOUT[command]
    prog = f"llama3-scratch {command}".strip()
    args = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    {"": _add_run, "chat": _add_chat, "verify": _add_verify, "export": _add_export}[command](
        args.add_argument
    )
    return args


def _add_run(add):
    add("--version", action="version", version=f"llama3-scratch {__version__}")
    add("prompt", nargs="?", default=PROMPT, help=f'the text to continue (default: "{PROMPT}")')
    _add_sampling(add, max_new=32, temperature=0.0, top_p=1.0)
    add("--json", action="store_true", help="print one JSON object instead, for programs")


def _add_chat(add):
    add("--system", metavar="TEXT", help="the system message, sent before the first question")
    add("--template", choices=FORMATS, help="how a conversation becomes tokens. huggingface: by "
        "the chat template of the model's files, as in transformers; for Meta's files, which have "
        "none, by that of Llama 3, or of 3.1 with its date, 26 Jul 2024. meta: by Meta's format. "
        "(default: the files' own template, or meta if they have none)")  # fmt: skip
    _add_sampling(add, max_new=512, temperature=0.6, top_p=0.9)


def _add_sampling(add, **defaults):
    add("--checkpoint", metavar="DIR", help="a folder, a .gguf file, owner/name on Hugging Face, "
        "tiny or random")  # fmt: skip
    for name, kind, letter, text in (
        ("max_new", int, "N", "at most N new tokens"),
        ("temperature", float, "X", "0 takes the likeliest token each time; 1 samples from the "
         "model's own probabilities"),
        ("top_p", float, "X", "sample only from the likeliest tokens that together have "
         "probability X; 1 keeps all"),
    ):  # fmt: skip
        add(f"--{name.replace('_', '-')}", type=kind, default=defaults[name], metavar=letter,
            help=f"{text} (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, metavar="N", help="the same N samples the same text again")
    add("--device", default="cpu", help="where to compute: cpu (default), cuda, cuda:1, mps")
    add("--dtype", choices=DTYPES, help="the type to compute in (default: as stored)")
    add("--pipeline", action="store_true", help="under torchrun: give each rank some of the "
        "layers, as many as fit its memory, instead of a slice of every layer")  # fmt: skip
    add("--exact", action="store_true", help="compute with the book's own functions, to the "
        "bits of Meta's code; without it, faster ones add in another order")  # fmt: skip


def _add_verify(add):
    add("directory", metavar="DIR", help="a folder, a .gguf file, owner/name on Hugging Face, tiny")
    add("--against", choices=["published", "transformers"], help="also compare what the model "
        "answers: with published answers of the released models (one pass, in float32), or with "
        "the logits and next tokens of the package transformers on ten texts (in float32 if there "
        "are 4 bytes of memory per parameter, otherwise as stored)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object per check, for programs")


def _add_export(add):
    add("directory", metavar="DIR", help="a folder, a .gguf file, owner/name on Hugging Face, tiny")
    add("--to", required=True, choices=["huggingface", "gguf", "meta"], help="the form to write")
    add("out", metavar="OUT", help="the new folder, or the new file NAME.gguf")
    add("--dtype", "--type", dest="type", metavar="TYPE", help="float32, float16 or bfloat16 (or "
        "F32, F16, BF16); for gguf also Q8_0 (default: as stored)")  # fmt: skip


def print_tokens(tokens, config, tokenizer):
    """Print the model's size and the prompt's first tokens with their ids."""
    shown = tokens[:SHOWN]
    pieces = [f"{tokenizer.decode([token])!r} {token}".replace(" ", "\0") for token in shown]
    pieces += ["..."] if len(tokens) > SHOWN else []
    on = f" on this one of {processes.size()} ranks" if processes.size() > 1 else ""
    print(f"{config.n_parameters:,} parameters in {config.n_layers} layers{on}\n")
    print(f"{len(tokens)} tokens")
    print(textwrap.fill("  ".join(pieces), 96, **INDENT).replace("\0", " "), flush=True)


def print_stages(seen, config):
    """Print the shapes of the stages that `watch` recorded of a forward pass."""
    by_name = {call["def"]: call for call in seen}
    whole, inside, heads = (by_name[name] for name in ("forward", "block", "attention"))
    stages = [
        ("residual stream", whole["stream"], "T D"),
        ("queries, by head", heads["rotated_query"], "T N H"),
        ("keys, by head", heads["rotated_key"], "T K H"),
        ("values, by head", heads["value"], "T K H"),
        ("after attention", inside["middle"], "T D"),
        ("logits, last token", whole["return"][-1], "V"),
    ]
    print()
    for name, tensor, letters in stages:
        print(f"  {name:18} {shape(tensor, letters, config)}")


def likeliest(logits, tokenizer):
    """[V] -> [(token, its text, its probability)] of the five likeliest next tokens."""
    ids = logits.argsort(descending=True, stable=True)[:5].tolist()
    probabilities = logits.softmax(-1)
    return [(token, tokenizer.decode([token]), float(probabilities[token])) for token in ids]


def shared_out(stored, by_layers, device):
    """An opened checkpoint -> (this rank's part, how its weights join those of the others)."""
    if not by_layers:
        return parallel.open_slice(stored, *processes.place()), parallel.Parallel
    cuda = torch.device(device).type == "cuda"
    spare = memory.spare_on(device) if cuda else memory.spare_ram() // processes.on_this_machine()
    layers = pipeline.shares(stored.config.n_layers, processes.gather(spare))
    stage = pipeline.open_stage(stored, processes.place()[0], layers)
    return stage, lambda weights: pipeline.joined(weights, stage.config)


def loaded(args, stored, tokens):
    """An opened checkpoint -> weights, config, tokenizer, loaded as the arguments say.

    tokens: the prompt's number of tokens. The weights are loaded by the memory plan, which is
    printed on stderr if the checkpoint is large, and are quick unless --exact is given. Raises
    `InputError`.
    """
    device, ranks = memory.usable(args.device), processes.size()
    require(ranks > 1 or not args.pipeline, "--pipeline is for several ranks: start with torchrun.")
    if ranks > 1:
        stored, compute = shared_out(stored, args.pipeline, device)
    config = stored.config
    dtype = DTYPES.get(args.dtype) or stored.weights["norm.weight"].dtype
    together = min(tokens, chunk_size(tokens, config))
    plan = memory.plan(config, dtype, device, together, tokens + args.max_new, stored.weights)
    plan = replace(plan, ram=plan.ram // processes.on_this_machine())
    if config.n_parameters * ranks > LARGE:
        each = f"each of {ranks} ranks, here of rank 0:\n" if ranks > 1 else ""
        print(f"{each}{plan}", end="\n\n", file=sys.stderr, flush=True)
    weights, *rest = load(stored, dtype, device, plan)
    weights = weights if args.exact else quick(weights)
    return compute(weights) if ranks > 1 else weights, *rest


def attends(args):
    """Return the `attend` that the arguments ask for."""
    return model.attend if args.exact else attend_fused


def run(args):
    """Run the prompt through the model and continue it. Raises `InputError`."""
    _, stored = opened(args.checkpoint)
    tokens = stored.tokenizer.encode(args.prompt)
    weights, config, tokenizer = loaded(args, stored, max(1, len(tokens)))
    passes = math.ceil(len(tokens) / chunk_size(max(1, len(tokens)), config))
    watched = WATCHED if passes == 1 and not args.json else ()  # what is watched stays in memory
    with (
        progress(passes * config.n_layers, attends(args)) as attend,
        watch(choose, *watched) as seen,
    ):
        new = generate(
            weights, tokens, config, args.max_new, temperature=args.temperature, top_p=args.top_p,
            seed=args.seed, attend=attend,
        )  # fmt: skip
        new = _timed(new, times := [time.perf_counter()])
        if not args.json:
            print_tokens(tokens, config, tokenizer)
        first = list(itertools.islice(new, 1))
    top = [entry for call in seen[-1:] for entry in likeliest(call["logits"], tokenizer)]
    if len(seen) > 1:
        print_stages(seen, config)
    del seen
    answer = _until(tokenizer.stop_ids, itertools.chain(first, new), stopped := [])
    if args.json:
        answer = list(answer)
        print(json.dumps({
            "prompt": args.prompt, "ids": tokens,
            "next": [dict(zip(("id", "token", "probability"), entry, strict=True))
                     for entry in top],
            "new_ids": answer, "text": tokenizer.decode(answer),
            "stopped_by": tokenizer.decode(stopped) if stopped else "max_new",
            "speed": {what: {"tokens": n, "seconds": seconds, "tokens_per_second": n / seconds}
                      for what, n, seconds in speed(len(tokens), *times)},
        }))  # fmt: skip
        return
    if top:
        print("\nnext token, and its probability")
    for token, text, probability in top:
        print(f"  {text!r:14} {token:>7}  {probability:.4f}")
    print(f"\n{visible(args.prompt)}", end="", flush=True)
    for text in tokenizer.stream(answer):
        print(visible(text), end="", flush=True)
    print()
    if spans := speed(len(tokens), *times):
        print(f"({speed_text(spans)})", file=sys.stderr)


def _timed(new, times):
    """Yield new tokens, noting the time of each."""
    for token in new:
        times.append(time.perf_counter())
        yield token


def _until(stop, new, stopped):
    """Yield new tokens up to one of `stop`, which is appended to `stopped`."""
    for token in new:
        if token in stop:
            stopped.append(token)
            return
        yield token


def run_chat(args):
    """Run a conversation with the given arguments. Raises `InputError`."""
    path, stored = opened(args.checkpoint)
    form = chat_format(path, stored.tokenizer, args.template)
    chat(
        *loaded(args, stored, CHAT_ROOM), form=form, system=args.system, max_new=args.max_new,
        temperature=args.temperature, top_p=args.top_p, seed=args.seed, attend=attends(args),
        read=processes.read if processes.size() > 1 else None,
    )  # fmt: skip


def run_verify(args):
    """Print one line, or with `--json` one object, per check. Returns the exit code."""
    from llama3_scratch.checkpoint.against import AGAINST
    from llama3_scratch.checkpoint.verify import checks

    further = [AGAINST[args.against]] if args.against else []
    faults = 0
    for verdict, what, text in itertools.chain.from_iterable(
        check(args.directory) for check in (checks, *further)
    ):
        faults += verdict == "FAULT"
        lines = text.replace("\n", "\n" + " " * 9)
        entry = json.dumps({"verdict": verdict, "check": what, "text": text})
        print(entry if args.json else f"{verdict:8} {what:20} {lines}", flush=True)
    return 2 if faults else 0


def run_export(args):
    """Write the checkpoint in another form. Raises `InputError`."""
    from llama3_scratch.checkpoint.export import export

    path, stored = opened(args.directory)
    export(stored, args.to, args.out, args.type, read_template(path)[0])
    print(visible(f"{args.out} is written."))


RUN = {"": run, "chat": run_chat, "verify": run_verify, "export": run_export}


def main(arguments=None):
    """Run the command line; returns the exit code: 0, or 2 with one message on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and arguments[0] in ABOUT else ""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as for a program without a window
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # not every terminal can show every character
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if not processes.started():
        return _run(command, arguments)
    with processes.quiet() as stderr:  # one of the ranks talks
        code = _run(command, arguments, stderr)
    if code:
        processes.leave(code)  # at once: the others are waiting for this rank
    return code


def _run(command, arguments, stderr=None):
    """Run a command -> its exit code. stderr: where a rank says that it is the first to fail."""
    args = parser(command).parse_args(arguments[1:] if command else arguments)
    try:
        if stderr is None:
            return RUN[command](args) or 0
        require(command in ("", "chat"), f"{command} is not for several ranks: start it alone.")
        with processes.joined(args.device) as args.device:
            if args.seed is None:  # the same for all ranks
                args.seed = processes.share(secrets.randbits(63))
            return RUN[command](args) or 0
    except InputError as error:
        return _fail(error, stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, for example `head`, has stopped reading
        sys.stdout = None  # nothing is flushed at exit
        return 1
    except OSError as error:
        sys.stdout = None
        return _fail(f"the output cannot be written ({error.strerror or error}).", stderr)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("memory|overflow", str(error)):
            raise
        few = "this machine has too little memory: try a smaller --max-new or --dtype."
        return _fail(few, stderr)


def _fail(message, stderr):
    if stderr is None or processes.first_to_fail():
        print(f"error: {message}", file=stderr or sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
