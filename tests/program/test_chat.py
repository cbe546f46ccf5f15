"""`chat`, as a user meets it: through a pipe, in a terminal, and turn by turn."""

import gc
import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from helpers import SMALL, byte_level_tokenizer, make_weights

from llama3_scratch import Config, InputError, forward, generate, load, save
from llama3_scratch.__main__ import main
from llama3_scratch.chat import Prefix, chat, fit
from llama3_scratch.checkpoint.templates import Prompt, Template
from llama3_scratch.checkpoint.tokenizers import OtherTokenizer

SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, ["Ben likes tea.", "Who?", "And Mia?"]
RANDOM = ["--checkpoint", "random", "--temperature", "0", "--max-new", "7000"]  # it never ends
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and terminals")


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.fixture
def talk(tiny, monkeypatch, capsys):
    """Return a function: chat with these lines -> (standard output, error, each turn's prompt,
    and its answer, as ids)."""

    def run(lines, stop_at=None, **arguments):
        turns, answers = [], []

        def recorded(weights, ids, *others, **settings):
            turns.append(ids)
            answers.append([])
            new = generate(weights, ids, *others, **settings)
            return noted(new, stop_at if len(turns) == 1 else None)

        def noted(new, stop):
            for token in itertools.islice(new, stop):
                answers[-1].append(token)
                yield token
            if stop:
                raise KeyboardInterrupt

        entered = iter(lines)

        def entry(prompt):
            line = next(entered, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("llama3_scratch.chat.generate", recorded)
        monkeypatch.setattr("builtins.input", entry)
        chat(*tiny, **arguments)
        shown = capsys.readouterr()
        return shown.out, shown.err, turns, answers

    return run


def turn(role, content):
    return {"role": role, "content": content}


def asked(tokenizer, *messages):
    """The ids of user messages, each with the header of its answer, without <|begin_of_text|>."""
    return [tokenizer.encode_chat([turn("user", text)])[1:] for text in messages]


def test_the_history_has_the_ids_of_every_question_and_answer(talk, tiny):
    """And an answer is the one that the same ids give without a cache."""
    out, err, turns, answers = talk(ASKED, system="Be brief.", max_new=12, temperature=0)
    weights, config, tokenizer = tiny
    first, second, third = asked(tokenizer, *ASKED)
    end = [tokenizer.special["<|eot_id|>"]]
    assert turns[0] == tokenizer.encode_chat([SYSTEM, turn("user", ASKED[0])])
    assert turns[1] == turns[0] + answers[0] + end + second
    assert turns[2] == turns[1] + answers[1] + end + third
    for ids, answer in zip(turns, answers, strict=True):
        assert answer == list(generate(weights, ids, config, 12, stop=tokenizer.stop_ids))
    assert out.startswith("".join(tokenizer.stream(answers[0])) + "\n") and "dropped" not in err


def test_only_what_is_new_is_computed(talk, tiny, monkeypatch):
    """Prefix caching: a turn computes the last token of the answer before it, and the question."""
    computed = []
    module = sys.modules["llama3_scratch.generate"]

    def counted(weights, tokens, *others):
        computed.append(len(tokens))
        return forward(weights, tokens, *others)

    monkeypatch.setattr(module, "forward", counted)
    _, err, turns, answers = talk(ASKED, max_new=4, temperature=0)
    assert len(re.findall(r"prompt: \d+ tokens in [\d.]+ s, [\d.]+ per second; then: 3 ", err)) == 3
    assert [len(answer) for answer in answers] == [4, 4, 4]
    first, second, third = (len(ids) for ids in asked(tiny[2], *ASKED))
    assert computed == [1 + first, 1, 1, 1, 2 + second, 1, 1, 1, 2 + third, 1, 1, 1]
    known = sum(map(len, turns)) - (1 + first + 2 + second + 2 + third)
    assert f"prefix caching: {known} of {sum(map(len, turns))} tokens" in err


def test_an_interrupted_answer_stays_in_the_history(talk, tiny):
    out, err, turns, answers = talk(ASKED[:2], stop_at=3, max_new=12, temperature=0)
    weights, config, tokenizer = tiny
    assert answers[0] == list(generate(weights, turns[0], config, 3))
    assert out.startswith("".join(tokenizer.stream(answers[0])) + "\n") and len(turns) == 2
    end = [tokenizer.special["<|eot_id|>"]]
    assert turns[1] == turns[0] + answers[0] + end + asked(tokenizer, ASKED[1])[0]
    assert answers[1] == list(generate(weights, turns[1], config, 12, stop=tokenizer.stop_ids))


def test_messages_of_several_lines_lines_of_other_systems_and_empty_ones(talk, tiny):
    """An empty line is not sent."""
    lines = ["\ufeffBen likes tea.\\", "Mia likes cake.\r", "", "  ", "Who?\r", "And\\\r"]
    _, _, turns, answers = talk(lines, max_new=2)
    first, second = asked(tiny[2], "Ben likes tea.\nMia likes cake.", "Who?")
    assert turns[0][1:] == first and turns[1][-len(second) :] == second and len(turns) == 3
    assert turns[2][-7:] == asked(tiny[2], "And\n")[0][-7:]  # the input ends after the backslash


def test_two_interrupts_end_the_program(talk):
    """Ctrl-C after a stopped answer, or twice in a row; otherwise the conversation goes on."""
    stop = KeyboardInterrupt
    assert len(talk([ASKED[0], stop, ASKED[1]], stop_at=2, max_new=3)[2]) == 1
    _, err, turns, _ = talk([stop, ASKED[0], stop, ASKED[1], stop, stop, ASKED[2]], max_new=3)
    assert len(turns) == 2 and err.count("Ctrl-C again") == 3


def test_fit_drops_the_oldest_turns():
    turns = [[10 * i] * (i + 2) for i in range(1, 4)]  # 3, 4 and 5 tokens

    def ask(some):
        return Prompt([1, 2, *itertools.chain(*some), 90, 91, 92])

    assert fit(ask, turns, 17) == (turns, ask(turns))
    for room, dropped in ((16, 1), (14, 1), (13, 2), (10, 2), (9, 3), (5, 3), (1, 3)):
        assert fit(ask, turns, room) == (turns[dropped:], ask(turns[dropped:]))


@pytest.mark.parametrize(("n", "room", "most"), [(300, 3, 1), (300, 10**6, 2), (300, 500, 12)])
def test_a_text_is_not_encoded_once_for_each_turn(n, room, most):
    """What does not fit alone is encoded once; where turns are dropped, the logarithm of turns."""
    asked = []

    def ask(some):
        asked.append(len(some))
        return Prompt([0] * (5 + 3 * len(some)))

    fit(ask, [0] * n, room)
    assert len(asked) <= most


def test_a_full_context_drops_the_oldest_turns_with_a_notice(talk, tiny, monkeypatch):
    monkeypatch.setattr(Config, "context_length", 100)
    _, err, turns, answers = talk(ASKED * 3, system="Be brief.", max_new=20, temperature=0)
    assert len(turns) == 9 and max(map(len, turns)) <= 80
    assert "the oldest 1 of your questions and their answers are dropped" in err
    weights, config, tokenizer = tiny
    head = tokenizer.encode_chat([SYSTEM])
    head = head[: len(head) - len(tokenizer.encode_chat([])) + 1]  # without the answer's header
    lasts = asked(tokenizer, *ASKED) * 3
    for last, ids, answer in zip(lasts, turns, answers, strict=True):
        assert ids[: len(head)] == head and ids[-len(last) :] == last
        # The cache has no dropped turn in it.
        assert answer == list(generate(weights, ids, config, 20, stop=tokenizer.stop_ids))
    monkeypatch.setattr(Config, "context_length", 8192)
    assert "dropped" not in talk(ASKED * 3, system="Be brief.", max_new=20, temperature=0)[1]


def test_a_message_that_is_too_long_is_not_sent(talk, tiny, monkeypatch):
    """A notice says that it was not sent, and the conversation before it is kept."""
    monkeypatch.setattr(Config, "context_length", 100)
    _, err, turns, _ = talk([ASKED[0], "word " * 200, ASKED[1]], max_new=20, temperature=0)
    assert re.search(r"not sent.*\d+ tokens and max_new is 20: expected at most 100", err)
    assert len(turns) == 2 and "dropped" not in err
    first = tiny[2].encode_chat([turn("user", ASKED[0])])
    assert turns[1][: len(first)] == first


def test_a_cut_answer_has_a_notice(talk):
    assert "(cut at 2 tokens, see --max-new)" in talk(ASKED[:1], max_new=2, temperature=0)[1]
    assert "cut at" not in talk(ASKED[:1], stop_at=2, max_new=3)[1]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--temperature", "-1"], "temperature is -1.0"), (["--top-p", "2"], "top_p is 2.0"),
    (["--max-new", "9000"], "max_new is 9000: expected at most 8192"),
    (["--max-new", "-1"], "max_new is -1"), (["--system", "word " * 9000], "expected at most 8192"),
    (["--checkpoint", "nowhere"], "'nowhere' is not a checkpoint"),
    (["--device", "abacus"], "device abacus cannot be used here"),
])  # fmt: skip
def test_mistakes_are_reported_before_the_first_question(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a question was asked"))
    assert main(["chat", *arguments]) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.out == "" and len(shown.err.splitlines()) < 24


def test_a_tokenizer_without_a_chat_format_is_refused(tiny):
    other = OtherTokenizer(json.loads(byte_level_tokenizer().to_str()), "it")
    with pytest.raises(InputError, match="Meta's chat format"):
        chat(*tiny[:2], other)


def test_a_template_makes_the_prompts_and_its_end_token_stops(talk, tiny, monkeypatch):
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}assistant: "
    )
    form = Template(source, tiny[2], {"eos_token": "<|reserved_special_token_9|>"}, "it")
    end = tiny[2].special["<|reserved_special_token_9|>"]
    assert form.stop_ids == tiny[2].stop_ids | {end}
    _, _, turns, answers = talk(ASKED[:2], system="S", max_new=4, temperature=0, form=form)
    encode = tiny[2].encode
    parts = [encode(text, bos=False) for text in (
        "system: S", "user: " + ASKED[0], "assistant: ", "user: " + ASKED[1])]  # fmt: skip
    assert turns[0] == [*parts[0], end, *parts[1], end, *parts[2]]
    rest = [end, *parts[3], end, *parts[2]]
    assert turns[1] == [*turns[0], *answers[0], *rest]
    monkeypatch.setattr(Config, "context_length", 100)
    _, err, turns, _ = talk(ASKED * 3, max_new=20, temperature=0, form=form)
    assert len(turns) == 9 and max(map(len, turns)) <= 80 and "dropped" in err


def test_another_models_folder_is_talked_with_by_its_template(tmp_path, monkeypatch, capsys):
    """Its end token stops an answer: a model that always says that token says nothing."""
    other = OtherTokenizer(json.loads(byte_level_tokenizer().to_str()), "it")
    config = replace(SMALL, vocab_size=other.vocab_size)
    weights = make_weights(config)
    for name in weights:
        if name.endswith(("wo.weight", "w2.weight")):
            weights[name].zero_()
    weights["tok_embeddings.weight"][:] = weights["norm.weight"][:] = 1
    weights["output.weight"].zero_()[2] = 1
    save(tmp_path, weights, config, other)
    entered = iter([])

    def entry(prompt):
        if (line := next(entered, None)) is None:
            raise EOFError
        return line

    def talked():
        nonlocal entered
        entered = iter(["Who?", "Why?"])
        code = main(["chat", "--checkpoint", str(tmp_path), "--max-new", "3"])
        return code, *capsys.readouterr()

    monkeypatch.setattr("builtins.input", entry)
    code, out, err = talked()
    assert code == 2 and "no chat template" in err and out == ""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    (tmp_path / "chat_template.jinja").write_text(source)
    code, out, err = talked()
    assert code == 0 and out == "<|im_end|><|im_end|><|im_end|>\n" * 2 and "cut at 3" in err
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    code, out, err = talked()
    assert code == 0 and out == "\n\n" and "cut" not in err


def test_what_a_template_refuses_is_not_sent_and_the_conversation_goes_on(talk, tiny):
    source = ("{% for m in messages if m.content == 'no' %}{{ raise_exception('Not \x1b[2J no') }}"
              "{% endfor %}{{ messages | map(attribute='content') | join('|') }}")  # fmt: skip
    out, err, turns, _ = talk(["no", "yes"], max_new=2, form=Template(source, tiny[2], {}, "it"))
    assert "(not sent: the chat template of it fails: Not \\x1b[2J no)" in err
    assert turns == [tiny[2].encode("yes", bos=False)] and "\x1b" not in err


@pytest.mark.parametrize("where", ["encode_chat", "start", "forward", "stream"])
def test_ctrl_c_stops_what_is_going_on_and_no_earlier_turn_is_lost(where, talk, tiny, monkeypatch):
    """While a paste is encoded, the cache is copied, the prompt computed, or a piece printed."""
    target = {"encode_chat": (type(tiny[2]), "encode_chat"), "start": (Prefix, "start"),
              "forward": (sys.modules["llama3_scratch.generate"], "forward"),
              "stream": (type(tiny[2]), "stream")}[where]  # fmt: skip
    original, armed = getattr(*target), []

    def interrupted(*arguments):
        if armed:
            armed.pop()
            raise KeyboardInterrupt
        return original(*arguments)

    def lines():
        yield ASKED[0]
        armed.append(True)
        yield "word " * 40
        yield ASKED[1]

    monkeypatch.setattr(*target, interrupted)
    _, err, turns, answers = talk(lines(), max_new=3, temperature=0)
    weights, config, tokenizer = tiny
    end = [tokenizer.special["<|eot_id|>"]]
    assert turns[-1] == turns[0] + answers[0] + end + asked(tokenizer, ASKED[1])[0]
    assert answers[-1] == list(generate(weights, turns[-1], config, 3, stop=tokenizer.stop_ids))
    assert "the question is not part of the conversation" in err


def test_what_the_model_says_is_shown_not_sent(talk, tiny, monkeypatch):
    monkeypatch.setattr(type(tiny[2]), "stream", lambda *_: iter(["a\x1b[2J", "\x9b\n", "b\tc"]))
    assert talk(ASKED[:1], max_new=2)[0] == "a\\x1b[2J\\x9b\nb\tc\n"


@pytest.mark.parametrize(("n_turns", "leak"), [(300, False), (150, True)])
@pytest.mark.thorough
def test_300_turns_do_not_need_more_memory(n_turns, leak, tiny, monkeypatch, capsys):
    """The context is full after some 8 turns. The control keeps each turn's cache."""
    monkeypatch.setattr(Config, "context_length", 128)
    used, kept, start = [], [], Prefix.start
    numbers = iter(range(n_turns))

    def entry(prompt):
        i = next(numbers, None)
        if i in (60, n_turns - 1):
            gc.collect()
            alive = (each for each in gc.get_objects() if type(each) is torch.Tensor)
            used.append(sum(tensor.nbytes for tensor in alive))
        if i is None:
            raise EOFError
        return f"Question {i}: who has the kite?"

    def leaking(self, *arguments):
        kept.append(start(self, *arguments))
        return kept[-1]

    if leak:
        monkeypatch.setattr(Prefix, "start", leaking)
    monkeypatch.setattr("builtins.input", entry)
    weights = {name: tensor.float() for name, tensor in tiny.weights.items()}  # quicker
    chat(weights, *tiny[1:], max_new=1, temperature=0)
    assert capsys.readouterr().err.count("dropped") > n_turns - 20
    assert (used[1] - used[0] > 2**24) == leak, used


def start(arguments, **streams):
    """Start the program so that Ctrl-C reaches it, even if the tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "llama3_scratch", "chat", *arguments],
        preexec_fn=streams.pop("first", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)),
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        **streams,
    )


def read_until(descriptor, wanted, seconds=60):
    """Read until `wanted(everything so far)` holds."""
    text, end = b"", time.monotonic() + seconds
    while not wanted(text):
        left = end - time.monotonic()
        assert left > 0 and select.select([descriptor], [], [], left)[0], text
        piece = os.read(descriptor, 4096)
        assert piece, text
        text += piece
    return text


def test_chat_works_in_a_pipe():
    done = subprocess.run(
        [sys.executable, "-m", "llama3_scratch", "chat", "--max-new", "8", "--seed", "1"],
        input=b"Ben likes tea.\nca\xff\xe9\n\nWho?", capture_output=True, timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) >= 3 and b"> " not in done.stdout[:2]


@posix
def test_answers_stream_and_sigint_stops_them():
    """Pieces come one by one; SIGINT ends an answer; the next question gets its own answer."""
    pipe = subprocess.PIPE
    with start(RANDOM, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as child:
        out = child.stdout.fileno()
        for question in (b"One\n", b"Two\n"):
            child.stdin.write(question)
            reads = [read_until(out, bool) for _ in range(4)]
            assert sum(map(len, reads)) < 1000 and child.poll() is None  # of 7000 tokens
            child.send_signal(signal.SIGINT)
            rest = read_until(out, lambda text: text.endswith(b"\n"))
            assert child.poll() is None and len(rest) < 20_000
        child.stdin.close()
        assert child.wait(60) == 0 and child.stdout.read() == b""
        assert b"Traceback" not in child.stderr.read()


@posix
def test_chat_works_in_a_terminal():
    """Ctrl-C and Ctrl-D come from a real terminal."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()

    def take_the_terminal():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    child = start(RANDOM, first=take_the_terminal, stdin=theirs, stdout=theirs, stderr=theirs,
                  start_new_session=True)  # fmt: skip
    os.close(theirs)
    try:
        assert b"Ctrl-C stops an answer" in read_until(ours, lambda text: text.endswith(b"> "))
        os.write(ours, b"a b " * 3000 + b"\n")  # longer than a terminal's own 4095 bytes
        n = len(load("tiny").tokenizer.encode_chat([turn("user", "a b " * 3000)]))
        said = read_until(ours, lambda text: text.endswith(b"\r\n> "))
        assert f"(not sent: the prompt has {n} tokens".encode() in said
        for question in (b"One\n", b"Two\n"):
            os.write(ours, question)
            read_until(ours, lambda text: len(text) > 40)
            os.write(ours, b"\x03")
            read_until(ours, lambda text: text.endswith(b"\r\n> "))
            assert child.poll() is None
        os.write(ours, b"\x04")
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
