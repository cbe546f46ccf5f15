"""The command line: `python -m llama3_scratch "some prompt"`."""

import argparse
import itertools
import os
import sys
import textwrap

from llama3_scratch import PROMPT, InputError, generate, load, model, shape, watch
from llama3_scratch.checkpoint import DTYPES

INDENT = {"initial_indent": "  ", "subsequent_indent": "  ", "break_long_words": False}


def parser():
    """The arguments, as `--help` shows them."""
    args = argparse.ArgumentParser(
        prog="python -m llama3_scratch",
        description="Run a prompt through Llama 3 and watch: the tokens with their ids, the shape "
        "of each stage, the five likeliest next tokens, and then the text as it is chosen.",
        epilog="Without --checkpoint the environment variable LLAMA3_CHECKPOINT names one; without "
        "that it is the tiny Llama 3 that ships with this package.",
    )
    add = args.add_argument
    add("prompt", nargs="?", default=PROMPT, help=f'the text to continue (default: "{PROMPT}")')
    add("--checkpoint", metavar="DIR", help="a folder with Meta's files, or: tiny, random")
    add("--max-new", type=int, default=32, metavar="N", help="at most N new tokens (default: 32)")
    add("--temperature", type=float, default=0.0, metavar="X", help="0 takes the likeliest token "
        "each time (default); 1 draws by the model's own probabilities")  # fmt: skip
    add("--top-p", type=float, default=1.0, metavar="X", help="draw only among the likeliest "
        "tokens that together have probability X (default: 1, all)")  # fmt: skip
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


def run(args):
    """Do what the arguments say; raises `InputError`."""
    weights, config, tokenizer = load(args.checkpoint, DTYPES.get(args.dtype), args.device)
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


def main(arguments=None):
    """Run the command line; returns the exit code: 0, or 2 with one message on stderr."""
    args = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):  # not every terminal can show every character
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        run(args)
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
    return 0


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
