"""The pre-training of the tiny model: data, validation, saved states, and resuming bit for bit."""

import contextlib
import errno
import io
import json
import os
import re
import signal
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from random import Random

import pytest
import torch

from llama3_scratch import PRESETS, Config, InputError, load, train
from llama3_scratch.checkpoint.files import LOCK, locked
from llama3_scratch.tiny import pretrain, world
from llama3_scratch.tokenizer import N_SPECIAL
from llama3_scratch.watch import watch

SMALL = Config(24, 2, 4, 2, 400 + N_SPECIAL, 4, 1e-5, 500000.0, 1.3)
SHORT = {"steps": 6, "rows": 2, "length": 64, "config": SMALL, "every": 3}
FILES = ("consolidated.00.pth", "params.json", "tokenizer.model")
make_tokenizer = cache(pretrain.make_tokenizer)  # it takes a second


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    """One thread, deterministic algorithms, one tokenizer for all tests; then restore the old.

    Little is held out, so that a run takes a fraction of a second.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "make_tokenizer", make_tokenizer)
        few = partial(pretrain.Validation, n_documents=20, n_repeats=4)
        patch.setattr(pretrain, "Validation", few)
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def tokenizer():
    return make_tokenizer(SMALL.vocab_size - N_SPECIAL)


def test_the_sizes_keep_the_ratios_of_llama_3_8b_and_differ_from_each_other():
    tiny, large = pretrain.CONFIG.sizes, PRESETS["Llama-3-8B"].sizes
    for sizes in (tiny, large):
        assert (sizes["G"], sizes["F"] / sizes["D"]) == (4, 3.5)
    assert pretrain.CONFIG.vocab_size - 1792 == N_SPECIAL
    for name in ("norm_eps", "rope_theta", "ffn_dim_multiplier", "tied_output"):
        assert getattr(pretrain.CONFIG, name) == getattr(PRESETS["Llama-3-8B"], name)
    assert len(set(tiny.values()) | {256}) == len(tiny) + 1  # 256: the length of a row


# --- Data -----------------------------------------------------------------------------------------


def test_rows_hold_the_documents_of_their_seed_and_begin_of_text_only_first(tokenizer):
    rows, floor = pretrain.training_rows(tokenizer, 5, 200, seed=7, progress=0.5)
    assert rows.shape == (5, 201)
    assert (rows == tokenizer.bos_id).nonzero().tolist() == [[i, 0] for i in range(5)]
    source, used = world.documents(7, 0.5), []
    for row in rows:
        *whole, cut = tokenizer.decode(row[1:]).split("<|end_of_text|>")
        assert whole  # at least one document is not cut
        for text in whole:
            used.append(next(source))
            assert text == used[-1].text
        if cut:  # otherwise the row ends with a document
            used.append(next(source))
            assert used[-1].text.startswith(cut)
    # with begin_of_text counted in place of end_of_text
    n_tokens = sum(len(tokenizer.encode(document.text)) for document in used)
    assert floor == pytest.approx(sum(document.nats for document in used) / n_tokens)


def test_the_seeds_of_training_and_of_measurements_differ():
    last = 999_999 * pretrain.SEED_STRIDE + pretrain.SEED_STRIDE - 1
    others = {pretrain.TOKENIZER_SEED, pretrain.HELD_OUT_SEED, pretrain.SKILLS_SEED}
    assert len(others) == 3 and min(others) > last


@pytest.mark.parametrize("kind", world.WRITERS)
def test_answers_are_found_among_the_ids(tokenizer, kind):
    random = Random(1).random
    for _ in range(20):
        document = world.document(random, kind)
        ids, answers = pretrain.encode(document, tokenizer)
        assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.special["<|end_of_text|>"]
        assert tokenizer.decode(ids[1:-1]) == document.text
        assert [(skill, tokenizer.decode(ids[a:b])) for skill, a, b in answers] == [
            (skill, document.text[a:b]) for skill, a, b in document.answers
        ]


def test_an_answer_that_begins_inside_a_token_is_refused(tokenizer):
    document = world.Document("Mia has a kite.", "story", 1.0, (("what", 4, 7),))  # not " has"
    with pytest.raises(InputError, match="does not fit the tokens"):
        pretrain.encode(document, tokenizer)


def test_validation_measures_whole_documents_and_only_repeated_words(tokenizer):
    validation = pretrain.Validation(tokenizer, SMALL, n_documents=20, n_repeats=4)
    ends = (validation.batch[1] == tokenizer.special["<|end_of_text|>"]).sum(1)
    assert ends.tolist() == [1] * 20
    random = Random(pretrain.HELD_OUT_SEED).random
    for inputs, targets in zip(*validation.repeats, strict=True):
        ids, answers = pretrain.encode(world.document(random, "repeat"), tokenizer)
        places = [place for _, start, stop in answers for place in range(start, stop)]
        scored = (targets != train.IGNORED).nonzero().flatten().tolist()
        assert scored == [place - 1 for place in places]  # logits at i predict token i + 1
        assert targets[scored].tolist() == [ids[place] for place in places]
        assert inputs[: len(ids) - 1].tolist() == ids[:-1]
    loss, right = validation.measure(train.start_weights(SMALL, 0))
    assert loss > validation.floor > 0 and 0 <= right < 0.2


def test_ten_steps_lower_the_loss(tokenizer):
    weights = train.start_weights(SMALL, 0)
    optimizers = train.make_optimizers(weights)
    held_out = pretrain.Validation(tokenizer, SMALL)
    before, _ = held_out.measure(weights)
    for step in range(10):
        ids, _ = pretrain.training_rows(tokenizer, 4, 64, step, step / 10)
        train.train_step(weights, optimizers, ids, SMALL, 1.0)
    after, _ = held_out.measure(weights)
    assert after < before - 0.2


# --- Runs -----------------------------------------------------------------------------------------


def run(folder, **changed):
    """Run a short training -> its last float32 weights, and its checkpoint's files as bytes."""
    last, save_state = {}, pretrain.save_state

    def save_and_copy(path, log, weights, *rest):
        last.update({name: tensor.detach().clone() for name, tensor in weights.items()})
        save_state(path, log, weights, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "save_state", save_and_copy)
        pretrain.train(folder, **SHORT | changed)
    return last, [(folder / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, last weights and files."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, *run(folder)


def killed_run(folder, monkeypatch, at=4):
    """Kill a run in the middle of step `at`, after the weights of that step have changed."""
    steps, step = [], train.train_step

    def dying(*arguments):
        loss = step(*arguments)
        steps.append(loss)
        if len(steps) > at:
            raise KeyboardInterrupt
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train_step", dying)
        with pytest.raises(KeyboardInterrupt):
            pretrain.train(folder, **SHORT)
    assert [path.name for path in folder.iterdir()] == [pretrain.STATE]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_run_that_is_resumed_ends_in_the_same_bits(tmp_path, monkeypatch, finished):
    whole, weights, files = finished
    killed_run(tmp_path / "killed", monkeypatch)
    resumed_weights, resumed_files = run(tmp_path / "killed", resume=True)
    assert len(weights) > 0 and same(weights, resumed_weights)
    assert files == resumed_files
    assert not (tmp_path / "killed" / pretrain.STATE).exists()
    logs = [json.loads((folder / "training.json").read_text())
            for folder in (whole, tmp_path / "killed")]  # fmt: skip
    for key in ("training", "held_out", "held_out_stored", "held_out_floor", "settings"):
        assert logs[0][key] == logs[1][key]
    assert [session["from_step"] for session in logs[1]["sessions"]] == [0, 3]

    # a control: without the optimizers' state the weights differ
    killed_run(tmp_path / "forgetful", monkeypatch)
    for optimizer in (train.Muon, torch.optim.AdamW):
        monkeypatch.setattr(optimizer, "load_state_dict", lambda self, state: None)
    other_weights, other_files = run(tmp_path / "forgetful", resume=True)
    assert not same(weights, other_weights) and files[0] != other_files[0]


def test_a_run_killed_before_its_checkpoint_is_saved_ends_in_the_same_bits(
    tmp_path, monkeypatch, finished
):
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain.train(tmp_path, **SHORT)
    _, resumed = run(tmp_path, resume=True)
    assert finished[2] == resumed


def test_rows_progress_and_rate_of_a_step_depend_on_its_number(tmp_path):
    with watch(pretrain.training_rows, train.train_step) as calls:
        pretrain.train(tmp_path, **SHORT | {"seed": 3, "steps": 4})
    rows, steps = calls[::2], calls[1::2]
    names = ("n_rows", "length", "seed", "progress")
    given = [tuple(call[name] for name in names) for call in rows]
    assert given == [(2, 64, 30_000_000 + i, i / 4) for i in range(4)]
    assert [call["factor"] for call in steps] == [0.01, 0.02, 0.03, 0.04]  # the warm-up
    for made, used in zip(rows, steps, strict=True):
        assert made["def"] == "training_rows" and torch.equal(made["return"][0], used["ids"])


def test_the_seed_determines_the_bytes(tmp_path, finished):
    _, _, files = finished
    _, again = run(tmp_path / "a" / "longer name")
    _, other = run(tmp_path / "other", seed=1)
    assert files == again
    assert files[0] != other[0] and files[1:] == other[1:]


def test_a_finished_run_consists_of_its_checkpoint_its_log_and_a_picture(finished):
    folder, weights, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {*FILES, "loss.svg", "training.json"}
    stored, config, tokenizer = load(folder)
    assert config == SMALL and tokenizer.vocab_size == SMALL.vocab_size
    assert all(torch.equal(stored[name], weights[name].bfloat16()) for name in weights)
    assert ElementTree.parse(folder / "loss.svg").getroot().tag.endswith("svg")
    log = json.loads((folder / "training.json").read_text())
    assert [row[0] for row in log["training"]] == [1, 2, 3, 4, 5, 6]
    assert all(loss > floor > 0 for _, loss, floor in log["training"])
    assert [row[0] for row in log["held_out"]] == [3, 6] and log["step"] == 6
    assert log["sessions"][0]["seconds"] > 0 and log["sessions"][0]["threads"] == 1
    assert log["settings"]["params"] == SMALL.to_params()


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_not_overwritten(finished, resume):
    folder, _, files = finished
    with pytest.raises(InputError, match="belongs to a finished run: remove .* or change --out"):
        pretrain.train(folder, **SHORT | {"resume": resume})
    assert files == [(folder / name).read_bytes() for name in FILES]


def test_an_unfinished_run_is_resumed_only_on_request_and_with_its_settings(tmp_path, monkeypatch):
    killed_run(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="unfinished run: add --resume"):
        pretrain.train(tmp_path, **SHORT)
    with pytest.raises(InputError, match="other settings: steps is 6, not 8. Give the same"):
        pretrain.train(tmp_path, **SHORT | {"steps": 8, "resume": True})
    state = torch.load(tmp_path / pretrain.STATE, weights_only=True)
    state["log"]["settings"]["of another version"] = 1
    torch.save(state, tmp_path / pretrain.STATE)
    with pytest.raises(InputError, match="other settings: of another version is 1, not None"):
        pretrain.train(tmp_path, **SHORT | {"resume": True})
    del state["log"]["settings"]["of another version"]
    torch.save(state, tmp_path / pretrain.STATE)
    monkeypatch.setattr(world, "PLACES", world.PLACES[::-1])
    with pytest.raises(InputError, match="other settings: text is '.*', not "):
        pretrain.train(tmp_path, **SHORT | {"resume": True})


def test_a_folder_or_a_state_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        says = r"error: .*file.* cannot be written .*name a folder into which you may write"
        with pytest.raises(SystemExit, match=says):
            pretrain.main(["--out", str(out)])

    def full(state, path):
        path.write_bytes(b"some")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="cannot be written .*is the disk full"):
        pretrain.train(tmp_path / "out", **SHORT)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("file", ["consolidated.00.pth", "loss.svg", "training.json"])
def test_a_disk_that_fills_at_the_end_of_a_training_loses_nothing(
    tmp_path, monkeypatch, finished, file
):
    """The state remains, and `--resume` completes the run in the same bits."""

    def full(write):
        def writing(first, *rest, **named):
            if file in (getattr(path, "name", "") for path in (first, *rest)):
                next(path for path in (first, *rest) if isinstance(path, Path)).touch()
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(first, *rest, **named)

        return writing

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full(torch.save))
        patch.setattr(pretrain, "draw_losses", full(pretrain.draw_losses))
        patch.setattr(Path, "write_text", full(Path.write_text))
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            pretrain.train(tmp_path, **SHORT)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {pretrain.STATE} | (set() if file == FILES[0] else set(FILES))
    _, files = run(tmp_path, resume=True)
    assert files == finished[2] and (tmp_path / "training.json").exists()


def test_a_damaged_log_is_not_taken_for_a_finished_run(tmp_path, monkeypatch, finished):
    killed_run(tmp_path, monkeypatch)
    log = tmp_path / "training.json"
    for content in ("", "{", "[]", "{}", "9", "\0"):
        log.write_text(content)
        with pytest.raises(InputError, match="is empty or damaged: remove it, .* with --resume"):
            pretrain.train(tmp_path, **SHORT | {"resume": True})
    log.unlink()  # as the message says
    assert run(tmp_path, resume=True)[1] == finished[2]


def test_two_trainings_do_not_write_into_one_folder(tmp_path, monkeypatch):
    killed_run(tmp_path, monkeypatch)
    with (
        ThreadPoolExecutor(1) as other,
        locked(tmp_path),  # by one thread, so that it is locked for another one, too
        pytest.raises(InputError, match="another program is writing into .*wait until it ends"),
    ):
        other.submit(pretrain.train, tmp_path, **SHORT | {"resume": True}).result()
    pretrain.train(tmp_path, **SHORT | {"resume": True})  # the control


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.thorough
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path, finished):
    """SIGKILL at random moments, also while a state is saved: every step saves one."""
    every = {"resume": True, "every": 1}
    started = time.monotonic()
    run(tmp_path / "in one piece", **every)
    duration = time.monotonic() - started

    folder, moments, resumed = tmp_path / "killed", Random(0), set()
    for tenth in range(1, 9):
        pid = os.fork()
        if not pid:
            try:
                pretrain.train(folder, **SHORT | every)
            finally:
                os._exit(0)
        time.sleep(duration * (tenth + moments.uniform(-0.5, 0.5)) / 10)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with contextlib.suppress(FileNotFoundError):
            resumed.add(torch.load(folder / pretrain.STATE, weights_only=True)["log"]["step"])
    if not (folder / "training.json").exists():
        pretrain.train(folder, **SHORT | every)
    assert resumed  # it was killed after a state was saved
    assert finished[2] == [(folder / name).read_bytes() for name in FILES]
    names = {path.name for path in folder.iterdir()}
    assert names - {LOCK, pretrain.STATE} == {*FILES, "loss.svg", "training.json"}


def broken(state):
    """Yield (name, something that is not a complete state)."""
    yield "a list", [1, 2]
    yield "an empty dict", {}
    yield "an object that is not a tensor", {"log": Random(0)}
    for key in state:
        yield f"no {key}", {k: v for k, v in state.items() if k != key}
    for key in ("settings", "step"):
        yield f"no {key}", state | {"log": {k: v for k, v in state["log"].items() if k != key}}
    weights = state["weights"]
    yield "no norm", state | {"weights": {k: v for k, v in weights.items() if k != "norm.weight"}}
    yield "a shape", state | {"weights": weights | {"norm.weight": torch.ones(5)}}
    yield "a number", state | {"weights": weights | {"norm.weight": torch.tensor(1.0)}}
    yield "losses of fewer steps", state | {"losses": state["losses"][:1]}
    yield "a step that is not there", state | {"log": state["log"] | {"step": 7}}
    yield "one optimizer", state | {"optimizers": state["optimizers"][:1]}
    muon, adam = state["optimizers"]
    fewer = {i: {"momentum_buffer": torch.ones(5)} for i in muon["state"]}
    yield "an optimizer's shapes", state | {"optimizers": [muon | {"state": fewer}, adam]}


def test_a_damaged_state_is_refused(tmp_path, monkeypatch):
    killed_run(tmp_path, monkeypatch)
    path = tmp_path / pretrain.STATE
    whole = path.read_bytes()
    middle = len(whole) // 2  # inside a tensor, where torch.load itself does not notice it
    zeroed = whole[:middle] + bytes(64) + whole[middle + 64 :]
    files = {"empty": b"", "no zip": b"PK\x03\x04 no zip", "zeroed": zeroed}
    for name, wrong in broken(torch.load(path, weights_only=True)):
        torch.save(wrong, path)
        files[name] = path.read_bytes()
    for name, content in files.items():
        path.write_bytes(content)
        if name == "zeroed":
            torch.load(path, weights_only=True)
        expected = "is not a saved state" + (".*is damaged" if name == "zeroed" else "")
        with pytest.raises(InputError, match=expected):
            pretrain.train(tmp_path, **SHORT | {"resume": True})
            pytest.fail(name)
    path.write_bytes(whole)
    pretrain.train(tmp_path, **SHORT | {"resume": True})  # the control


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path, monkeypatch, terminal):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", screen)
    run(tmp_path, steps=3)
    line = r"step 3/3  loss [\d.]+ \(floor [\d.]+\)  [\d,]+ tokens/s  0 min left  held out "
    assert re.search(line, screen.getvalue())
    assert ("| 3/3 [" in screen.getvalue()) == terminal


def test_the_means_cover_every_step_once():
    losses = torch.arange(7.0)[:, None].repeat(1, 2)
    assert list(pretrain.means(losses, points=3)) == [[3, 1.0, 1.0], [6, 4.0, 4.0], [7, 6.0, 6.0]]


# --- The command line -----------------------------------------------------------------------------


def test_the_command_line_passes_its_arguments_on(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(pretrain, "train", lambda **arguments: given.update(arguments))
    pretrain.main(["--out", str(tmp_path), "--steps", "9", "--seed", "2", "--threads", "1"])
    assert given == {"out": str(tmp_path), "steps": 9, "rows": 8, "length": 256, "seed": 2,
                     "resume": False}  # fmt: skip
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("argument, value", [
    ("--steps", "0"), ("--rows", "-1"), ("--length", "0"), ("--length", "8193"),
    ("--threads", "0"), ("--seed", "-1"), ("--seed", "1000000"),
])  # fmt: skip
def test_wrong_arguments_are_named(tmp_path, argument, value):
    with pytest.raises(SystemExit, match=f"error: {argument} is {value}: expected"):
        pretrain.main(["--out", str(tmp_path), argument, value])
