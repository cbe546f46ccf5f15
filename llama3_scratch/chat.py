"""A conversation with an Instruct model: `python -m llama3_scratch chat`."""

import contextlib
import itertools
import sys

from llama3_scratch.errors import InputError, require
from llama3_scratch.generate import check_sampling, generate
from llama3_scratch.watch import progress


def fit(system, turns, tokenizer, room):
    """[system message] or [], turns, Tokenizer, room in tokens -> (the turns that fit, all ids).

    While there are more ids than `room`, the oldest question and its answer are dropped. The system
    message and the last question are always kept.
    """
    ids = tokenizer.encode_chat(system + turns)
    while len(ids) > room and len(turns) > 1:
        turns = turns[2:]
        ids = tokenizer.encode_chat(system + turns)
    return turns, ids


def chat(
    weights, config, tokenizer, *, system=None, max_new=512, temperature=0.6, top_p=0.9, seed=None
):
    """Answer each line of standard input, until its end; answers go to standard output.

    Ctrl-C stops an answer; the part already written stays in the conversation. A second Ctrl-C
    before the next question ends the program, as does the end of the input (Ctrl-D). Notices go to
    standard error. An answer has at most `max_new` tokens. Every turn computes the whole
    conversation again: encoding an answer's text need not give the ids that the model chose, so
    the cache of the previous turn could belong to other tokens. Raises `InputError` for a bad
    argument before anything is read.
    """
    check_sampling(max_new, temperature, None, top_p, seed)
    first = [{"role": "system", "content": system}] if system else []
    room = config.context_length - max_new
    n_first = len(tokenizer.encode_chat(first))
    require(
        n_first < room,
        f"before any question there are {n_first} tokens and max_new is {max_new}: expected at "
        f"most {config.context_length} in all, this model's context length.",
    )
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    terminal, turns, interrupted = sys.stdin.isatty(), [], False
    if terminal:
        _say("(Ctrl-C stops an answer. Ctrl-D, on Windows Ctrl-Z and Enter, ends the program.)")
    while True:
        try:
            question = input("> " if terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            _say("\n(Ctrl-C again, or the end of the input, ends the program.)")
            continue
        if not question.strip():
            continue
        asked, pieces, interrupted = [*turns, {"role": "user", "content": question}], [], False
        with contextlib.ExitStack() as bar:
            attend = bar.enter_context(progress(config.n_layers))
            try:
                kept, ids = fit(first, asked, tokenizer, room)
                new = generate(
                    weights, ids, config, max_new, temperature=temperature, top_p=top_p, seed=seed,
                    stop=tokenizer.stop_ids, attend=attend,
                )  # fmt: skip
            except InputError as error:  # the question is too long: all else was checked above
                _say(f"(not sent, ask something shorter: {error})")
                continue
            if gone := len(asked) - len(kept):
                _say(f"(the model's context is full: the oldest {gone // 2} of your questions and "
                     "their answers are dropped)")  # fmt: skip
            try:
                start = list(itertools.islice(new, 1))
                bar.close()
                for piece in tokenizer.stream(itertools.chain(start, new)):
                    pieces.append(piece)
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                interrupted = True
        print(flush=True)
        if len(pieces) > max_new:  # no stop token: one piece per token, and the stream's last
            _say(f"(cut at {max_new} tokens, see --max-new)")
        turns = [*kept, {"role": "assistant", "content": "".join(pieces)}]


def _say(text):
    print(text, file=sys.stderr, flush=True)
