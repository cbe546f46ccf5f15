"""A conversation with an Instruct model: `python -m llama3_scratch chat`."""

import sys

from llama3_scratch.config import InputError
from llama3_scratch.generate import generate


def fit(system, turns, tokenizer, room):
    """The system message in a list, or [], turns, Tokenizer, tokens -> (turns that stay, all ids).

    While there are more ids than `room`, the oldest question and its answer go. The system message
    and the last question stay in any case.
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

    Ctrl-C stops an answer; what was said of it stays in the conversation. Ctrl-C once more before
    the next question leaves, as the end of the input (Ctrl-D) does. What the program itself has to
    say goes to standard error. At most `max_new` tokens to an answer. Every turn computes the whole
    conversation anew: the ids of an answer's text need not be those that the model chose, so a kept
    cache could be of other tokens. Raises `InputError` for a bad argument before anything is read.
    """

    def answer(ids):
        return generate(
            weights, ids, config, max_new, temperature=temperature, top_p=top_p, seed=seed,
            stop=tokenizer.stop_ids,
        )  # fmt: skip

    first = [{"role": "system", "content": system}] if system else []
    answer(tokenizer.encode_chat(first))  # nothing is computed, but the arguments are checked
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    terminal, turns, interrupted = sys.stdin.isatty(), [], False
    if terminal:
        _say("(Ctrl-C stops an answer. Ctrl-D, on Windows Ctrl-Z and Enter, leaves.)")
    while True:
        try:
            question = input("> " if terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            _say("\n(Ctrl-C again, or the end of the input, leaves.)")
            continue
        if not question.strip():
            continue
        asked, pieces, interrupted = [*turns, {"role": "user", "content": question}], [], False
        try:
            kept, ids = fit(first, asked, tokenizer, config.context_length - max_new)
            new = answer(ids)
        except InputError as error:  # the arguments are right, so it is the question's length
            _say(f"(not sent, ask something shorter: {error})")
            continue
        if gone := len(asked) - len(kept):
            _say(f"(the model's context is full: the oldest {gone // 2} of your questions and "
                 "their answers are forgotten from here on)")  # fmt: skip
        try:
            for piece in tokenizer.stream(new):
                pieces.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            interrupted = True
        print(flush=True)
        if len(pieces) > max_new:  # no stop token came: a piece for each, and the stream's last
            _say(f"(cut at {max_new} tokens, see --max-new)")
        turns = [*kept, {"role": "assistant", "content": "".join(pieces)}]


def _say(text):
    print(text, file=sys.stderr, flush=True)
