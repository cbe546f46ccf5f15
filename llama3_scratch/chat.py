"""A conversation with an Instruct model: `llama3-scratch chat`."""

import bisect
import contextlib
import math
import sys
import time

from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint.templates import MetasFormat, Turn
from llama3_scratch.errors import InputError, require, visible
from llama3_scratch.generate import check_sampling, chunk_size, generate
from llama3_scratch.model import attend as readable_attend
from llama3_scratch.watch import progress


def fit(ask, turns, room):
    """Drop as many of the oldest turns as is needed -> (the turns that are kept, the prompt).

    ask: turns -> the `Prompt` of these and the question. room: in tokens. A question that does not
    fit alone comes back alone, and was encoded once.
    """
    alone = ask([])
    if len(alone.ids) > room or not turns:
        return [], alone
    prompt = ask(turns)
    if len(prompt.ids) <= room:
        return turns, prompt
    starts = range(1, len(turns))
    kept = turns[1 + bisect.bisect_left(starts, -room, key=lambda i: -len(ask(turns[i:]).ids)) :]
    return kept, ask(kept)


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
        known = self.ids[: self.cache.length]
        pairs = enumerate(zip(known, ids, strict=False))
        common = next((i for i, (a, b) in pairs if a != b), min(len(known), len(ids)))
        common = min(common, len(ids) - 1)  # the last token is computed, for its logits
        self.cache = self.cache.copy(self.config, common, max(1, len(ids) + max_new - 1))
        self.ids = list(ids)
        self.seen += len(ids)
        self.computed += len(ids) - common
        return self.cache


def chat(
    weights, config, tokenizer, *, form=None, system=None, max_new=512, temperature=0.6,
    top_p=0.9, seed=None, attend=readable_attend, read=None,
):  # fmt: skip
    """Answer each message on standard input, until its end; answers go to standard output.

    form: what `chat_format` returned; None is Meta's chat format. A message is a line; one that
    ends with a backslash continues on the next line. Ctrl-C stops what is going on; the part of an
    answer that is already written stays in the conversation, and a question without any is not in
    it. A second Ctrl-C before the next question ends the program, as does the end of the input
    (Ctrl-D). Notices and the speed of each answer go to standard error. An answer has at most
    `max_new` tokens. The ids of the conversation are kept, and so are their keys and values: a turn
    computes only what is new. read: what reads a line, None for Python's `input`. Raises
    `InputError` for a bad argument before anything is read.
    """
    check_sampling(max_new, temperature, None, top_p, seed)
    form = form or MetasFormat(tokenizer)
    room = config.context_length - max_new
    shortest = len(form.prompt(system, [], "?").ids)
    require(
        shortest <= room,
        f"the shortest question makes {shortest} tokens, and max_new is {max_new}: expected at "
        f"most {config.context_length} in all, this model's context length.",
    )
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    terminal, interrupted = sys.stdin.isatty(), False
    turns, last, prefix = [], None, Prefix(weights, config)
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  arrow keys, history, and lines of any length
        _say("(A line that ends with \\ continues on the next. Ctrl-C stops an answer. Ctrl-D, on "
             "Windows Ctrl-Z and Enter, ends the program.)")  # fmt: skip
    while True:
        message, answer = None, []
        try:
            message = _message(read or input, "> " if terminal else "")
            if not message.strip():
                continue
            interrupted = False
            try:
                kept, prompt = _next_prompt(form, system, turns, message, last, room, config)
            except InputError as error:
                _say(f"(not sent: {error})")
                continue
            if gone := len(turns) - len(kept):
                _say(f"(the model's context is full: the oldest {gone} of your questions and their "
                     "answers are dropped)")  # fmt: skip
            with contextlib.ExitStack() as bar:
                cache = prefix.start(prompt.ids, max_new)
                computed = len(prompt.ids) - cache.length
                passes = math.ceil(computed / chunk_size(len(prompt.ids), config))
                counted = bar.enter_context(progress(config.n_layers * passes, attend))
                new = generate(
                    weights, prompt.ids, config, max_new, temperature=temperature, top_p=top_p,
                    seed=seed, stop=form.stop_ids, attend=counted, cache=cache,
                )  # fmt: skip
                times = [time.perf_counter()]
                for piece in tokenizer.stream(_noted(new, answer, bar, times)):
                    print(visible(piece), end="", flush=True)
        except EOFError:
            break
        except KeyboardInterrupt:
            if interrupted:
                break
            interrupted = True
            if message is None:
                _say("\n(Ctrl-C again, or the end of the input, ends the program.)")
                continue
            if not answer:
                _say("\n(stopped before the answer: the question is not part of the conversation)")
                continue
        print(flush=True)
        if len(answer) == max_new and not interrupted:
            _say(f"(cut at {max_new} tokens, see --max-new)")
        if spans := speed(computed, *times):
            _say(f"({speed_text(spans)})")
        prefix.ids += answer
        turns, last = [*kept, Turn(message, answer)], prompt
    if prefix.computed < prefix.seen:
        _say(f"(prefix caching: {prefix.seen - prefix.computed} of {prefix.seen} tokens of the "
             "prompts were not computed again)")  # fmt: skip


def _next_prompt(form, system, turns, message, last, room, config):
    """Return `fit`'s turns and prompt for the next message; raise `InputError` if it is too long"""
    kept, prompt = fit(lambda some: form.prompt(system, some, message, last), turns, room)
    require(
        len(prompt.ids) <= room,
        f"the prompt has {len(prompt.ids)} tokens and max_new is {config.context_length - room}: "
        f"expected at most {config.context_length} in all, this model's context length. Ask "
        "something shorter.",
    )
    return kept, prompt


def _message(read, prompt):
    """Read a message: a line, and those after it while they end with a backslash."""
    line = read(prompt).removeprefix("\ufeff").rstrip("\r")
    while line.endswith("\\"):
        line = f"{line[:-1]}\n"
        with contextlib.suppress(EOFError):
            line += read("  " if prompt else "").rstrip("\r")
    return line


def _noted(new, answer, bar, times):
    """Yield new tokens, noting each and its time; the first one closes the progress bar."""
    for token in new:
        bar.close()
        answer.append(token)
        times.append(time.perf_counter())
        yield token


def speed(n_prompt, began, *times):
    """Tokens computed; times at the start and at each new token -> [(what, tokens, seconds)]."""
    spans = [("prompt", n_prompt, times[0] - began)] if times else []
    return spans + ([("then", len(times) - 1, times[-1] - times[0])] if times[1:] else [])


def speed_text(spans):
    """Return what `speed` returned as a line of text."""
    return "; ".join(f"{what}: {n} tokens in {seconds:.2f} s, {n / seconds:.1f} per second"
                     for what, n, seconds in spans)  # fmt: skip


def _say(text):
    print(text, file=sys.stderr, flush=True)
