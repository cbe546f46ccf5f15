"""The command line: `python -m llama3_scratch "some prompt"`, and two commands, chat and verify."""

import argparse
import itertools
import os
import sys
import textwrap

from llama3_scratch import (
    PROMPT,
    InputError,
    checkpoint,
    generate,
    load,
    memory,
    model,
    shape,
    watch,
)
from llama3_scratch.chat import chat
from llama3_scratch.checkpoint import DTYPES
from llama3_scratch.verify import checks

LARGE = 500_000_000  # parameters, from which on it is said what a checkpoint needs
INDENT = {"initial_indent": "  ", "subsequent_indent": "  ", "break_long_words": False}
WHERE = (
    "Without --checkpoint the environment variable LLAMA3_CHECKPOINT names one; without that it is "
    "the tiny Llama 3 that ships with this package. "
)
ABOUT = {  # command: (what --help says first, and last)
    "": (
        "Run a prompt through Llama 3 and watch: the tokens with their ids, the shape of each "
        "stage, the five likeliest next tokens, and then the text as it is chosen.",
        WHERE + "Two words in the first place are commands: 'chat', a conversation, and 'verify', "
        "which checks a checkpoint's files; each has its own --help. To use one of the two as a "
        "prompt put -- before it.",
    ),
    "chat": (
        "Talk with an Instruct model: each line is a message, the answer comes as it is chosen. "
        "Ctrl-C stops an answer, Ctrl-D leaves (on Windows Ctrl-Z and Enter). When the "
        "conversation outgrows the model's context, its oldest part is forgotten, and said so.",
        WHERE + "The files do not say whether weights are an Instruct model's; others, tiny among "
        "them, do not know the chat format and answer nonsense.",
    ),
    "verify": (
        "Check a checkpoint's files, one line for each check: sizes and hashes (Meta's "
        "checklist.chk, or what is known of a download), the settings, names, shapes and types of "
        "the tensors, every number, the scaling of RoPE, the tokenizer and the prompt's ids.",
        "The exit code is 0, or 2 when a line begins with FAULT. What there is nothing to compare "
        "with is 'skipped'. Every byte is read; 16 GB take some minutes.",
    ),
}


def parser(command=""):
    """The arguments of a command, as its `--help` shows them."""
    description, epilog = ABOUT[command]
    prog = f"python -m llama3_scratch {command}".strip()
    args = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    add = args.add_argument
    if command == "verify":
        add("directory", metavar="DIR", help="a checkpoint's folder, or: tiny")
        return args
    if command == "chat":
        add("--system", metavar="TEXT", help="what the model is told before the first message")
    else:
        add("prompt", nargs="?", default=PROMPT, help=f'the text to continue (default: "{PROMPT}")')
    max_new, temperature, top_p = (512, 0.6, 0.9) if command == "chat" else (32, 0.0, 1.0)
    add("--checkpoint", metavar="DIR", help="a checkpoint's folder, or: tiny, random")
    default = "(default: %(default)s)"
    add("--max-new", type=int, default=max_new, metavar="N", help=f"at most N new tokens {default}")
    add("--temperature", type=float, default=temperature, metavar="X", help="0 takes the likeliest "
        f"token each time; 1 draws by the model's own probabilities {default}")  # fmt: skip
    add("--top-p", type=float, default=top_p, metavar="X", help="draw only among the likeliest "
        f"tokens that together have probability X; 1 is all {default}")  # fmt: skip
    add("--seed", type=int, metavar="N", help="for drawing the same text again")
    add("--device", default="cpu", help="where to compute: cpu (default), cuda, cuda:1, mps")
    add("--dtype", choices=DTYPES, help="the type to compute in (default: as stored)")
    return args


def print_stages(seen, config, tokenizer):
    """Print what `watch` saw of a forward pass: the stages' shapes, the five likeliest tokens."""
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


def loaded(args):
    """`load`, as the arguments say; of a large checkpoint the plan is printed first, on stderr.

    A pass that takes long shows the layer that it is at. Raises `InputError`.
    """
    device, dtype = checkpoint.usable(args.device), DTYPES.get(args.dtype)
    folder, config = checkpoint.find(args.checkpoint)
    if config.n_parameters > LARGE:
        stored = checkpoint.read_weights(folder, config)["norm.weight"].dtype
        plan = memory.plan(
            config, dtype or stored, device, context=256 + args.max_new, stored=stored,
            reordered=not (folder / "params.json").exists(),
        )  # fmt: skip
        print(plan, end="\n\n", file=sys.stderr, flush=True)
    weights, config, tokenizer = load(args.checkpoint, dtype, device)
    return memory.with_progress(weights, config.n_layers), config, tokenizer


def run(args):
    """Do what the arguments say; raises `InputError`."""
    weights, config, tokenizer = loaded(args)
    tokens = tokenizer.encode(args.prompt)
    new = generate(
        weights, tokens, config, args.max_new, temperature=args.temperature, top_p=args.top_p,
        seed=args.seed, stop=tokenizer.stop_ids,
    )  # fmt: skip
    pieces = [f"{tokenizer.decode([token])!r} {token}".replace(" ", "\0") for token in tokens]
    print(f"{config.n_parameters:,} parameters in {config.n_layers} layers\n\n{len(tokens)} tokens")
    print(textwrap.fill("  ".join(pieces), 96, **INDENT).replace("\0", " "), flush=True)
    with watch(model.forward, model.block, model.attention) as seen:
        first = list(itertools.islice(new, 1))
    if seen:
        print_stages(seen, config, tokenizer)
    del seen
    print(f"\n{args.prompt}", end="", flush=True)
    for text in tokenizer.stream(itertools.chain(first, new)):
        print(text, end="", flush=True)
    print()


def run_chat(args):
    """Talk as the arguments say; raises `InputError`."""
    chat(
        *loaded(args), system=args.system, max_new=args.max_new, temperature=args.temperature,
        top_p=args.top_p, seed=args.seed,
    )  # fmt: skip


def run_verify(args):
    """Print a line for each check; returns the exit code."""
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
    except OSError as error:  # what is left of the output goes nowhere, at exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever reads it, `head` say, has seen enough
            return 1
        return _fail(f"the output cannot be written ({error.strerror}).")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _fail("this machine has not enough memory: try a smaller --max-new or --dtype.")


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
