"""A conversation with an Instruct model: `python -m llama3_scratch chat`."""

import contextlib
import itertools
import math
import sys

from llama3_scratch.cache import Cache
from llama3_scratch.errors import InputError, require
from llama3_scratch.generate import check_sampling, chunk_size, generate
from llama3_scratch.watch import progress


def fit(first, turns, question, room):
    """Drop the oldest turns until the ids fit -> (the turns that are kept, all ids).

    first: the ids before any turn, question: those of the last question; both are always kept.
    turns: (ids of a question, ids of its answer), the oldest first. room: in tokens.
    """
    length = len(first) + len(question) + sum(len(a) + len(b) for a, b in turns)
    dropped = 0
    while length > room and dropped < len(turns):
        length -= sum(map(len, turns[dropped]))
        dropped += 1
    kept = turns[dropped:]
    return kept, [*first, *itertools.chain.from_iterable(a + b for a, b in kept), *question]


class Prefix:
    """Prefix caching: the cache of the last prompt and answer, for the next one that begins alike.

    seen, computed: how many tokens were asked for in all, and how many of them were computed.
    """

    def __init__(self, weights, config):
        self.config, self.ids = config, []
        norm = weights["norm.weight"]
        self.cache = Cache(config, 1, (), norm.dtype, norm.device)
        self.seen = self.computed = 0

    def start(self, ids, max_new):
        """Return a cache with room for a prompt and its answer, filled as far as ids are known."""
        pairs = enumerate(zip(self.ids[: self.cache.length], ids, strict=False))
        common = next((i for i, (a, b) in pairs if a != b), min(self.cache.length, len(ids)))
        common = min(common, len(ids) - 1)  # the last token is computed, for its logits
        self.cache = self.cache.copy(self.config, common, max(1, len(ids) + max_new - 1))
        self.ids = list(ids)
        self.seen += len(ids)
        self.computed += len(ids) - common
        return self.cache


def chat(
    weights, config, tokenizer, *, system=None, max_new=512, temperature=0.6, top_p=0.9, seed=None
):
    """Answer each message on standard input, until its end; answers go to standard output.

    A message is a line; one that ends with a backslash continues on the next line. Ctrl-C stops an
    answer; the part already written stays in the conversation. A second Ctrl-C before the next
    question ends the program, as does the end of the input (Ctrl-D). Notices go to standard error.
    An answer has at most `max_new` tokens. The ids of the conversation are kept, and so are their
    keys and values: a turn computes only what is new. Raises `InputError` for a bad argument before
    anything is read.
    """
    check_sampling(max_new, temperature, None, top_p, seed)
    header = tokenizer.encode_chat([])[1:]
    first = [{"role": "system", "content": system}] if system else []
    first = tokenizer.encode_chat(first)[: -len(header)]
    room = config.context_length - max_new
    require(
        len(first) + len(header) < room,
        f"before any question there are {len(first) + len(header)} tokens and max_new is {max_new}:"
        f" expected at most {config.context_length} in all, this model's context length.",
    )
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    terminal, turns, interrupted = sys.stdin.isatty(), [], False
    prefix = Prefix(weights, config)
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  arrow keys, history, and lines of any length
        _say("(A line that ends with \\ continues on the next. Ctrl-C stops an answer. Ctrl-D, on "
             "Windows Ctrl-Z and Enter, ends the program.)")  # fmt: skip
    while True:
        try:
            message = _message("> " if terminal else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            if interrupted:
                break
            interrupted = True
            _say("\n(Ctrl-C again, or the end of the input, ends the program.)")
            continue
        if not message.strip():
            continue
        answer, interrupted = [], False
        try:
            question = tokenizer.encode_chat([{"role": "user", "content": message}])[1:]
            kept, ids = fit(first, turns, question, room)
            require(
                len(ids) <= room,
                f"the prompt has {len(ids)} tokens and max_new is {max_new}: expected at most "
                f"{config.context_length} in all, this model's context length.",
            )
        except InputError as error:
            _say(f"(not sent, ask something shorter: {error})")
            continue
        except KeyboardInterrupt:
            interrupted = True
            continue
        if gone := len(turns) - len(kept):
            _say(f"(the model's context is full: the oldest {gone} of your questions and their "
                 "answers are dropped)")  # fmt: skip
        with contextlib.ExitStack() as bar:
            try:
                cache = prefix.start(ids, max_new)
                passes = math.ceil((len(ids) - cache.length) / chunk_size(len(ids), config))
                attend = bar.enter_context(progress(config.n_layers * passes))
                new = generate(
                    weights, ids, config, max_new, temperature=temperature, top_p=top_p, seed=seed,
                    stop=tokenizer.stop_ids, attend=attend, cache=cache,
                )  # fmt: skip
                for piece in tokenizer.stream(_noted(new, answer, bar)):
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                interrupted = True
        print(flush=True)
        prefix.ids += answer
        if len(answer) == max_new and not interrupted:
            _say(f"(cut at {max_new} tokens, see --max-new)")
        turns = [*kept, (question, [*answer, tokenizer.special["<|eot_id|>"]])]
    if prefix.computed < prefix.seen:
        _say(f"(prefix caching: {prefix.seen - prefix.computed} of {prefix.seen} tokens of the "
             "prompts were not computed again)")  # fmt: skip


def _message(prompt):
    """Read a message: a line, and those after it while they end with a backslash."""
    line = input(prompt).removeprefix("\ufeff").rstrip("\r")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n" + input("  " if prompt else "").rstrip("\r")
    return line


def _noted(new, answer, bar):
    """Yield new tokens, appending each to `answer`; the first one closes the progress bar."""
    for token in new:
        bar.close()
        answer.append(token)
        yield token


def _say(text):
    print(text, file=sys.stderr, flush=True)
