"""The command line: `python -m llama3_scratch "some prompt"`, and the commands chat and verify."""

import argparse
import itertools
import math
import os
import sys
import textwrap
import time

from llama3_scratch import PROMPT, InputError, generate, load, model, shape, watch
from llama3_scratch.chat import chat
from llama3_scratch.checkpoint import memory
from llama3_scratch.checkpoint.lazy import DTYPES
from llama3_scratch.checkpoint.source import open_checkpoint
from llama3_scratch.checkpoint.verify import checks
from llama3_scratch.generate import chunk_size
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
        WHERE + "The first word may be a command: 'chat', for a conversation, or 'verify', to "
        "check a checkpoint's files; each has its own --help. To use one of these two words as a "
        "prompt, put -- before it.",
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
        "checklist.chk, or recorded at the download), the settings, names, shapes and types of the "
        "tensors, whether all numbers are finite, RoPE's scaling, the tokenizer, the prompt's ids.",
        "The exit code is 0, or 2 if a line begins with FAULT. A check is 'skipped' if there is "
        "nothing to compare with. Every byte is read, which takes some minutes for 16 GB.",
    ),
}


def parser(command=""):
    """Return the parser of a command's arguments, with the text of its `--help`."""
    description, epilog = ABOUT[command]
    prog = f"python -m llama3_scratch {command}".strip()
    args = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    add = args.add_argument
    if command == "verify":
        add("directory", metavar="DIR", help="a folder, owner/name on Hugging Face, or tiny")
        return args
    if command == "chat":
        add("--system", metavar="TEXT", help="the system message, sent before the first question")
    else:
        add("prompt", nargs="?", default=PROMPT, help=f'the text to continue (default: "{PROMPT}")')
    max_new, temperature, top_p = (512, 0.6, 0.9) if command == "chat" else (32, 0.0, 1.0)
    add("--checkpoint", metavar="DIR", help="a folder, owner/name on Hugging Face, tiny or random")
    default = "(default: %(default)s)"
    add("--max-new", type=int, default=max_new, metavar="N", help=f"at most N new tokens {default}")
    add("--temperature", type=float, default=temperature, metavar="X", help="0 takes the likeliest "
        f"token each time; 1 samples from the model's own probabilities {default}")  # fmt: skip
    add("--top-p", type=float, default=top_p, metavar="X", help="sample only from the likeliest "
        f"tokens that together have probability X; 1 keeps all {default}")  # fmt: skip
    add("--seed", type=int, metavar="N", help="the same N samples the same text again")
    add("--device", default="cpu", help="where to compute: cpu (default), cuda, cuda:1, mps")
    add("--dtype", choices=DTYPES, help="the type to compute in (default: as stored)")
    return args


def print_tokens(tokens, config, tokenizer):
    """Print the model's size and the prompt's first tokens with their ids."""
    shown = tokens[:SHOWN]
    pieces = [f"{tokenizer.decode([token])!r} {token}".replace(" ", "\0") for token in shown]
    pieces += ["..."] if len(tokens) > SHOWN else []
    print(f"{config.n_parameters:,} parameters in {config.n_layers} layers\n\n{len(tokens)} tokens")
    print(textwrap.fill("  ".join(pieces), 96, **INDENT).replace("\0", " "), flush=True)


def print_stages(seen, config, tokenizer):
    """Print what `watch` recorded of a forward pass: stages' shapes, the five likeliest tokens."""
    by_name = {call["def"]: call for call in seen}
    whole, inside, heads = (by_name[name] for name in ("forward", "block", "attention"))
    stages = [
        ("residual stream", whole["stream"], "T D"),
        ("queries, by head", heads["rotated_query"], "T N H"),
        ("keys, by head", heads["rotated_key"], "T K H"),
        ("values, by head", heads["value"], "T K H"),
        ("after attention", inside["middle"], "T D"),
        ("logits", whole["return"], "T V"),
    ]
    print()
    for name, tensor, letters in stages:
        print(f"  {name:18} {shape(tensor, letters, config)}")
    top = whole["return"][-1].softmax(-1).topk(min(5, config.vocab_size))
    print("\nnext token, and its probability")
    for probability, token in zip(top.values, top.indices, strict=True):
        print(f"  {tokenizer.decode([token])!r:14} {token:>7}  {probability:.4f}")


def loaded(args, stored, tokens):
    """An opened checkpoint -> weights, config, tokenizer, loaded as the arguments say.

    tokens: the prompt's number of tokens. The weights are loaded by the memory plan, which is
    printed on stderr if the checkpoint is large. Raises `InputError`.
    """
    device, config = memory.usable(args.device), stored.config
    dtype = DTYPES.get(args.dtype) or stored.weights["norm.weight"].dtype
    together = min(tokens, chunk_size(tokens, config))
    plan = memory.plan(config, dtype, device, together, tokens + args.max_new, stored.weights)
    if config.n_parameters > LARGE:
        print(plan, end="\n\n", file=sys.stderr, flush=True)
    return load(stored, dtype, device, plan)


def run(args):
    """Run the prompt through the model and continue it. Raises `InputError`."""
    stored = open_checkpoint(args.checkpoint)
    tokens = stored.tokenizer.encode(args.prompt)
    weights, config, tokenizer = loaded(args, stored, max(1, len(tokens)))
    passes = math.ceil(len(tokens) / chunk_size(max(1, len(tokens)), config))
    watched = WATCHED if passes == 1 else ()  # what is watched stays in memory
    with progress(passes * config.n_layers) as attend, watch(*watched) as seen:
        new = generate(
            weights, tokens, config, args.max_new, temperature=args.temperature, top_p=args.top_p,
            seed=args.seed, stop=tokenizer.stop_ids, attend=attend,
        )  # fmt: skip
        new = _timed(new, times := [time.perf_counter()])
        print_tokens(tokens, config, tokenizer)
        first = list(itertools.islice(new, 1))
    if seen:
        print_stages(seen, config, tokenizer)
    del seen
    print(f"\n{args.prompt}", end="", flush=True)
    for text in tokenizer.stream(itertools.chain(first, new)):
        print(text, end="", flush=True)
    print()
    if len(times) > 1:
        print(f"({_speed(len(tokens), *times)})", file=sys.stderr)


def _timed(new, times):
    """Yield new tokens, noting the time of each."""
    for token in new:
        times.append(time.perf_counter())
        yield token


def _speed(n_prompt, began, first, *later):
    """Tokens; times at the start, at the first new token, at the others -> a line of text."""
    parts = [("prompt", n_prompt, first - began)]
    parts += [("then", len(later), later[-1] - first)] if later else []
    return "; ".join(f"{what}: {n} tokens in {seconds:.2f} s, {n / seconds:.1f} per second"
                     for what, n, seconds in parts)  # fmt: skip


def run_chat(args):
    """Run a conversation with the given arguments. Raises `InputError`."""
    stored = open_checkpoint(args.checkpoint)
    chat(
        *loaded(args, stored, CHAT_ROOM), system=args.system, max_new=args.max_new,
        temperature=args.temperature, top_p=args.top_p, seed=args.seed,
    )  # fmt: skip


def run_verify(args):
    """Print one line per check. Returns the exit code."""
    faults = 0
    for verdict, what, text in checks(args.directory):
        faults += verdict == "FAULT"
        lines = text.replace("\n", "\n" + " " * 9)
        print(f"{verdict:8} {what:20} {lines}", flush=True)
    return 2 if faults else 0


def main(arguments=None):
    """Run the command line; returns the exit code: 0, or 2 with one message on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and arguments[0] in ABOUT else ""
    args = parser(command).parse_args(arguments[1:] if command else arguments)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as for a program without a window
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # not every terminal can show every character
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return {"": run, "chat": run_chat, "verify": run_verify}[command](args) or 0
    except InputError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print()
        return 130
    except BrokenPipeError:  # the reader, for example `head`, has stopped reading
        sys.stdout = None  # nothing is flushed at exit
        return 1
    except OSError as error:
        sys.stdout = None
        return _fail(f"the output cannot be written ({error.strerror}).")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _fail("this machine has too little memory: try a smaller --max-new or --dtype.")


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
