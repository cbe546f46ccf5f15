"""The history of a training: its file, its measures, and continuing after a stop."""

import json
import math
from collections import Counter
from functools import cache, partial

import pytest
import torch

from llama3_scratch import Config, InputError, load, train
from llama3_scratch.tiny import history, pretrain, world
from llama3_scratch.tiny.heads import PATTERNS
from llama3_scratch.tiny.pretrain import CONFIG
from llama3_scratch.tokenizer import N_SPECIAL

SMALL = Config(24, 2, 4, 2, 400 + N_SPECIAL, 4, 1e-5, 500000.0, 1.3)
SHORT = {"config": SMALL, "checkpoints": (0, 3, 5), "n_documents": 2, "steps": 5, "rows": 2,
         "length": 64}  # fmt: skip
make_tokenizer = cache(pretrain.make_tokenizer)  # it takes a second


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    """One thread, deterministic algorithms, one tokenizer for all tests, little held-out text."""
    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "make_tokenizer", make_tokenizer)
        few = partial(pretrain.Validation, n_documents=12, n_repeats=4)
        patch.setattr(history, "Validation", few)
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished command: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("history") / "finished"
    return folder, history.history(folder, **SHORT)


def faults(content, config, checkpoints, seeds=(0, 1)):
    """Return what is not as `history.read` says."""
    found, kinds = [], content["kinds"]

    def expect(what, holds):
        found.extend([] if holds else [what])

    keys = "settings kinds floor held_out_floor unigram bigram uniform runs"
    expect("keys", list(content) == keys.split())
    expect("kinds", kinds == list(world.LATE) and list(content["floor"]) == kinds)
    expect("uniform", content["uniform"] == round(math.log(config.vocab_size), 4))
    expect("config", Config(**content["settings"]["params"]).to_params() == config.to_params())
    expect("steps", content["settings"]["checkpoints"] == list(checkpoints))
    expect("seeds", [run["seed"] for run in content["runs"]] == list(seeds))
    for run in content["runs"]:
        expect("run", list(run) == ["seed", "training", "checkpoints"])
        expect("curve", 5 <= len(run["training"]) <= 110)
        expect("end of curve", run["training"][-1][0] == content["settings"]["steps"])
        expect("rows of curve", all(len(row) == 3 for row in run["training"]))
        measured = run["checkpoints"]
        expect("checkpoints", [entry["step"] for entry in measured] == list(checkpoints))
        for entry in measured:
            keys = "step held_out loss skills heads repeats"
            expect("entry", list(entry) == keys.split())
            expect("loss", list(entry["loss"]) == kinds)
            expect("skills", entry["skills"].keys() == measured[0]["skills"].keys())
            expect("shares", all(0 <= share <= 1 for share in entry["skills"].values()))
            expect("repeats", 0 <= entry["repeats"] <= 1)
            expect("patterns", list(entry["heads"]) == list(PATTERNS))
            for scores in map(torch.tensor, entry["heads"].values()):
                expect("heads", scores.shape == (config.n_layers, config.n_heads))
                expect("probabilities", scores.min() >= 0 and scores.max() <= 1)
    return found


def test_a_short_run_gives_a_file_of_the_schema(finished):
    folder, content = finished
    assert faults(content, SMALL, SHORT["checkpoints"]) == []
    assert content == history.read(folder / "history.json")
    # controls: the same file with one fault each
    for path in (("unigram",), ("floor", "story"), ("runs", 1, "checkpoints", 2, "loss", "sum"),
                 ("runs", 0, "checkpoints", 0, "heads", "induction"), ("runs", 1)):  # fmt: skip
        wrong = history.read(folder / "history.json")
        inner = wrong
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        assert faults(wrong, SMALL, SHORT["checkpoints"]), path


def test_the_checkpoints_are_models_and_are_measured_as_saved(finished):
    folder, content = finished
    for run in content["runs"]:
        for entry in run["checkpoints"]:
            path = history.step_folder(folder / f"seed-{run['seed']}", entry["step"])
            model = load(path, dtype=torch.float32)
            validation = history.Validation(model.tokenizer, SMALL)
            assert validation.measure(model.weights)[0] == pytest.approx(
                entry["held_out"], abs=6e-5
            )
            assert load(path).weights["norm.weight"].dtype == torch.bfloat16
    start = load(history.step_folder(folder / "seed-1", 0)).weights
    right = train.start_weights(SMALL, 1)
    assert all(torch.equal(start[name], right[name].bfloat16()) for name in right)
    losses = [entry["held_out"] for entry in content["runs"][1]["checkpoints"]]
    assert losses == sorted(losses, reverse=True)  # training lowers it


def test_the_seeds_determine_the_bytes(tmp_path, finished):
    whole = (finished[0] / "history.json").read_bytes()
    history.history(tmp_path / "again", **SHORT)
    assert (tmp_path / "again" / "history.json").read_bytes() == whole
    history.history(tmp_path / "other", seeds=(0, 2), **SHORT)  # the control
    other = history.read(tmp_path / "other" / "history.json")["runs"]
    assert [run == old for run, old in zip(other, finished[1]["runs"], strict=True)] == [
        True,
        False,
    ]


@pytest.mark.parametrize("at", [1, 4])
def test_a_command_that_was_stopped_continues_to_the_same_bytes(
    tmp_path, monkeypatch, capsys, finished, at
):
    """Stopped while it trains the second seed, then while it measures, then run to its end."""
    whole = (finished[0] / "history.json").read_bytes()
    steps, measures = [], []

    def stopping(function, calls, last):
        def called(*arguments):
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return function(*arguments)

        return called

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "train_step", stopping(train.train_step, steps, 5 + at))
        with pytest.raises(KeyboardInterrupt):
            history.history(tmp_path, **SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(history, "measure", stopping(history.measure, measures, 3))
        with pytest.raises(KeyboardInterrupt):
            history.history(tmp_path, **SHORT)
    before = "starts from nothing, at step 0" if at == 1 else "continues, at step 3"
    assert f"seed 1: training {before}" in capsys.readouterr().err
    history.history(tmp_path, **SHORT)
    said = capsys.readouterr().err
    assert "training" not in said.replace("the training text", "")  # nothing is trained again
    assert said.count("held out") == 4  # of six: two were measured
    assert (tmp_path / "history.json").read_bytes() == whole


def test_other_settings_and_damaged_files_are_refused(tmp_path, monkeypatch):
    short = SHORT | {"seeds": (0,)}
    history.history(tmp_path, **short)
    with pytest.raises(InputError, match="other settings .* change --out, or remove"):
        history.history(tmp_path, **short | {"rows": 3})
    for name in ("training.json", "measured.json"):
        path = tmp_path / "seed-0" / name
        whole = path.read_bytes()
        for content in (b"", b"[1]", b"{", whole[:50]):
            path.write_bytes(content)
            with pytest.raises(InputError, match=f"{name} is empty or damaged: remove it"):
                history.history(tmp_path, **short)
        path.write_bytes(whole)
    history.history(tmp_path, **short)  # the control
    (tmp_path / "seed-0" / "training.json").unlink()
    (tmp_path / "seed-0" / pretrain.STATE).write_bytes(b"no state")
    with pytest.raises(InputError, match="is not a saved state of this model"):
        history.history(tmp_path, **short)
    monkeypatch.setattr(pretrain, "train_step", lambda *_: math.nan)
    with pytest.raises(InputError, match="seed 0, step 0: the loss is nan"):
        history.history(tmp_path / "nan", **short)


def test_counted_predictors_equal_those_counted_by_hand(finished):
    _, content = finished
    tokenizer = make_tokenizer(SMALL.vocab_size - N_SPECIAL)
    singles, pairs, size = Counter(), Counter(), SMALL.vocab_size
    for step in range(5):
        rows, _ = pretrain.training_rows(tokenizer, 2, 64, step, step / 5)
        for row in rows.tolist():
            singles.update(row[1:])
            pairs.update(zip(row[:-1], row[1:], strict=True))
    n = sum(singles.values())
    assert n == 5 * 2 * 64
    inputs, targets = history.Validation(tokenizer, SMALL).batch
    unigram = bigram = count = 0.0
    for one, two in zip(inputs.flatten().tolist(), targets.flatten().tolist(), strict=True):
        if two != train.IGNORED:
            single = (singles[two] + 1) / (n + size)
            times = sum(number for (first, _), number in pairs.items() if first == one)
            unigram -= math.log(single)
            bigram -= math.log((pairs[one, two] + single) / (times + 1))
            count += 1
    assert content["unigram"] == pytest.approx(unigram / count, abs=6e-5)
    assert content["bigram"] == pytest.approx(bigram / count, abs=6e-5)


# --- The shipped file -----------------------------------------------------------------------------


def test_the_shipped_file_has_the_schema_and_is_small():
    content, size = history.read(), history.SHIPPED.stat().st_size
    assert faults(content, CONFIG, history.CHECKPOINTS) == []
    assert size < 200_000
    settings = content["settings"]
    assert {key: settings[key] for key in history.SETTINGS} == history.SETTINGS
    numbers = []
    json.loads(history.SHIPPED.read_text(), parse_float=numbers.append)
    assert max(len(text.partition(".")[2]) for text in numbers if "e" not in text) <= 5


def test_the_shipped_file_tells_what_training_does():
    """The loss falls through the counted predictors towards the floor, for both seeds.

    It begins above ln V, because a token at first predicts itself (see `start_weights`). Induction
    heads are only half formed: the shipped model was trained on six times as much text.
    """
    content = history.read()
    floor, kinds = content["held_out_floor"], content["kinds"]
    assert content["uniform"] > content["unigram"] > content["bigram"] > 3 * floor
    for run in content["runs"]:
        first, last = run["checkpoints"][0], run["checkpoints"][-1]
        losses = [entry["held_out"] for entry in run["checkpoints"]]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > content["uniform"] > content["unigram"] > losses[1] > content["bigram"]
        assert floor < losses[-1] < 1.5 * floor < losses[-3] < content["bigram"]
        assert all(last["loss"][kind] < first["loss"][kind] / 2 for kind in kinds)
        for entry in run["checkpoints"]:
            assert all(entry["loss"][kind] > 0.98 * content["floor"][kind] for kind in kinds)
        before, after = (torch.tensor(entry["heads"]["induction"]) for entry in (first, last))
        assert before.max() < 0.05 < 0.3 < after.max()
        assert first["repeats"] < 0.01 < 0.2 < last["repeats"]
        assert not any(first["skills"].values()) and last["skills"]["42"] == 1
