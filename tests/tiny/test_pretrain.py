"""The training: its data, its loss, its steps, and that a killed run ends in the same bits."""

import json
import math
import xml.etree.ElementTree as ElementTree
from functools import cache, partial
from random import Random

import pytest
import torch

from llama3_scratch import PRESETS, Config, InputError, load, random_weights, train
from llama3_scratch.model import forward
from llama3_scratch.tiny import pretrain, world
from llama3_scratch.tokenizer import N_SPECIAL

SMALL = Config(
    dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=400 + N_SPECIAL, multiple_of=4,
    norm_eps=1e-5, rope_theta=500000.0, ffn_dim_multiplier=1.3,
)  # fmt: skip
make_tokenizer = cache(pretrain.make_tokenizer)  # it takes a second

pytestmark = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="training needs torch.optim.Muon, from torch 2.9 on"
)


@pytest.fixture(autouse=True)
def one_way_to_compute(monkeypatch):
    """One thread, deterministic algorithms, and the tokenizer made once; afterwards as before."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr(pretrain, "make_tokenizer", make_tokenizer)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def tokenizer():
    return make_tokenizer(SMALL.vocab_size - N_SPECIAL)


# --- The model that is trained --------------------------------------------------------------------


def test_the_sizes_keep_the_ratios_of_llama_3_8b_and_differ_from_each_other():
    tiny, large = pretrain.CONFIG.sizes, PRESETS["Llama-3-8B"].sizes
    assert tiny["G"] == large["G"] == 4
    assert tiny["F"] / tiny["D"] == large["F"] / large["D"] == 3.5
    assert pretrain.CONFIG.vocab_size - 1792 == N_SPECIAL
    for name in ("norm_eps", "rope_theta", "ffn_dim_multiplier", "tied_output"):
        assert getattr(pretrain.CONFIG, name) == getattr(PRESETS["Llama-3-8B"], name)
    assert len(set(tiny.values()) | {256}) == len(tiny) + 1  # 256: the length of a row


def test_the_start():
    weights = train.start_weights(SMALL, seed=3)
    random = random_weights(SMALL, seed=3)
    table = random["tok_embeddings.weight"]
    assert torch.equal(weights["output.weight"], table / math.sqrt(24))
    wo = "layers.1.attention.wo.weight"
    torch.testing.assert_close(weights[wo], random[wo] / 2)  # sqrt(2 x 2 layers)
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in weights.values())
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


# --- Data -----------------------------------------------------------------------------------------


def test_rows_hold_whole_documents_and_begin_of_text_only_first(tokenizer):
    rows, floor = pretrain.training_rows(tokenizer, 5, 200, seed=7, progress=0.5)
    assert rows.shape == (5, 201)
    assert (rows[:, 0] == tokenizer.bos_id).all()
    assert not (rows[:, 1:] == tokenizer.bos_id).any()
    source, used = world.documents(7, 0.5), []
    for row in rows:
        *whole, cut = tokenizer.decode(row[1:]).split("<|end_of_text|>")
        assert whole  # of several documents, at least one is not cut
        for text in whole:
            used.append(next(source))
            assert text == used[-1].text
        if cut:  # else the row ends with a document
            used.append(next(source))
            assert used[-1].text.startswith(cut)
    n_tokens = sum(len(tokenizer.encode(document.text)) for document in used)  # bos as end_of_text
    assert floor == pytest.approx(sum(document.nats for document in used) / n_tokens)


def test_rows_come_from_the_seed_and_nothing_else(tokenizer):
    make = partial(pretrain.training_rows, tokenizer, 2, 100, progress=0.5)
    assert torch.equal(make(seed=7)[0], make(seed=7)[0])
    assert not torch.equal(make(seed=7)[0], make(seed=8)[0])


def test_the_seeds_of_training_and_of_measuring_do_not_meet():
    last = 999_999 * pretrain.SEED_STRIDE + pretrain.SEED_STRIDE - 1
    apart = {pretrain.TOKENIZER_SEED, pretrain.HELD_OUT_SEED, pretrain.SKILLS_SEED}
    assert len(apart) == 3 and min(apart) > last


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


def test_an_answer_that_cuts_a_token_is_refused(tokenizer):
    document = world.Document("Mia has a kite.", "story", 1.0, (("what", 4, 7),))  # not " has"
    with pytest.raises(InputError, match="does not fit the tokens"):
        pretrain.encode(document, tokenizer)


def test_padding_is_never_a_target_and_changes_no_loss():
    rows = [[5, 1, 2, 3], [5, 4, 2], [5, 9, 8, 7, 6, 3]]
    inputs, targets = train.pad(rows)
    assert inputs.shape == targets.shape == (3, 5)
    assert targets[1].tolist() == [4, 2] + [train.IGNORED] * 3
    assert inputs[1, :2].tolist() == [5, 4]
    weights = train.start_weights(SMALL, 0)
    alone = 0.0
    for row in rows:
        chances = forward(weights, torch.tensor(row[:-1]), SMALL).log_softmax(-1)
        alone -= sum(chances[i, token] for i, token in enumerate(row[1:]))
    loss = train.loss_of(weights, inputs, targets, SMALL)
    torch.testing.assert_close(loss, alone / sum(len(row) - 1 for row in rows))


def test_validation_measures_whole_documents_and_only_the_second_copies(tokenizer):
    validation = pretrain.Validation(tokenizer, SMALL, n_documents=20, n_repeats=4)
    ends = (validation.batch[1] == tokenizer.special["<|end_of_text|>"]).sum(1)
    assert ends.tolist() == [1] * 20
    random = Random(pretrain.HELD_OUT_SEED).random
    for inputs, targets in zip(*validation.repeats, strict=True):
        ids, answers = pretrain.encode(world.document(random, "repeat"), tokenizer)
        places = [place for _, start, stop in answers for place in range(start, stop)]
        scored = (targets != train.IGNORED).nonzero().flatten().tolist()
        assert scored == [place - 1 for place in places]  # logits at i are about token i + 1
        assert targets[scored].tolist() == [ids[place] for place in places]
        assert inputs[: len(ids) - 1].tolist() == ids[:-1]
    loss, right = validation.measure(train.start_weights(SMALL, 0))
    assert loss > validation.floor > 0 and 0 <= right < 0.2


# --- Steps ----------------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    factor = partial(train.rate_factor, steps=1000)
    assert [factor(0), factor(49), factor(99)] == [0.01, 0.5, 1.0]
    assert [factor(300), factor(500)] == [1.0, 1.0]
    assert [factor(750), factor(999)] == pytest.approx([0.5, 0.002])


def test_each_weight_has_one_optimizer_and_only_matrices_decay():
    weights = train.start_weights(SMALL, 0)
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    optimizers = train.make_optimizers(weights)
    given = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, given)) == sorted(map(id, weights.values()))
    for tensor in weights.values():
        tensor.grad = torch.zeros_like(tensor)  # what still moves is the decay
    for optimizer in optimizers:
        optimizer.step()
    for name, tensor in weights.items():
        decay = 0.0
        if tensor.dim() == 2 and name != "tok_embeddings.weight":
            decay = 0.05 * (0.01 if name.startswith("layers") else 0.003)
        torch.testing.assert_close(tensor.detach(), before[name] * (1 - decay), rtol=1e-6, atol=0)
        assert torch.equal(tensor, before[name]) == (decay == 0)


def test_ten_steps_lower_the_loss(tokenizer):
    weights = train.start_weights(SMALL, 0)
    optimizers = train.make_optimizers(weights)
    held_out = pretrain.Validation(tokenizer, SMALL, 20, 2)
    before, _ = held_out.measure(weights)
    for step in range(10):
        ids, _ = pretrain.training_rows(tokenizer, 4, 64, step, step / 10)
        train.train_step(weights, optimizers, ids, SMALL, 1.0)
    after, _ = held_out.measure(weights)
    assert after < before - 0.2


def test_the_gradient_is_clipped_and_a_factor_of_zero_changes_nothing(tokenizer, monkeypatch):
    weights = train.start_weights(SMALL, 0)
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    clipped, clip = [], torch.nn.utils.clip_grad_norm_

    def watched(tensors, limit):
        tensors = list(tensors)
        clip(tensors, limit)
        clipped.append(float(torch.stack([tensor.grad.norm() for tensor in tensors]).norm()))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    ids, _ = pretrain.training_rows(tokenizer, 2, 64, 0, 0.0)
    train.train_step(weights, train.make_optimizers(weights), ids, SMALL, 0.0)
    assert clipped == [pytest.approx(1.0, abs=1e-3)]
    assert all(torch.equal(weights[name], before[name]) for name in weights)


# --- Runs -----------------------------------------------------------------------------------------

SHORT = {"steps": 6, "rows": 2, "length": 64, "config": SMALL, "every": 3}
FILES = ("consolidated.00.pth", "params.json", "tokenizer.model")


def run(folder, monkeypatch, **changed):
    """A short run -> its last float32 weights, and its checkpoint's files as bytes."""
    kept, save = {}, pretrain.save_state

    def save_and_keep(path, log, weights, *rest):
        kept.update({name: tensor.detach().clone() for name, tensor in weights.items()})
        save(path, log, weights, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "save_state", save_and_keep)
        pretrain.train(folder, **SHORT | changed)
    return kept, [(folder / name).read_bytes() for name in FILES]


def killed_run(folder, monkeypatch, at=4):
    """A run that ends in the middle of step `at`, after the weights of that step have changed."""
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


def test_a_killed_run_that_is_resumed_ends_in_the_same_bits(tmp_path, monkeypatch):
    weights, files = run(tmp_path / "whole", monkeypatch)
    killed_run(tmp_path / "killed", monkeypatch)
    resumed_weights, resumed_files = run(tmp_path / "killed", monkeypatch, resume=True)
    assert len(weights) > 0 and same(weights, resumed_weights)
    assert files == resumed_files
    assert not (tmp_path / "killed" / pretrain.STATE).exists()
    logs = [json.loads((tmp_path / name / "training.json").read_text())
            for name in ("whole", "killed")]  # fmt: skip
    for key in ("training", "held_out", "held_out_stored", "held_out_floor", "settings"):
        assert logs[0][key] == logs[1][key]
    assert [session["from_step"] for session in logs[1]["sessions"]] == [0, 3]

    # a control: without the optimizers' state the weights differ
    killed_run(tmp_path / "forgetful", monkeypatch)
    for optimizer in (torch.optim.Muon, torch.optim.AdamW):
        monkeypatch.setattr(optimizer, "load_state_dict", lambda self, state: None)
    other_weights, other_files = run(tmp_path / "forgetful", monkeypatch, resume=True)
    assert not same(weights, other_weights) and files[0] != other_files[0]


def test_a_run_killed_while_its_checkpoint_is_written_ends_in_the_same_bytes(tmp_path, monkeypatch):
    _, files = run(tmp_path / "whole", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain.train(tmp_path / "killed", **SHORT)
    _, resumed = run(tmp_path / "killed", monkeypatch, resume=True)
    assert files == resumed


def test_rows_progress_and_rate_of_a_step_come_from_its_number(tmp_path, monkeypatch):
    rows, steps, make, step = [], [], pretrain.training_rows, train.train_step

    def watched_rows(tokenizer, n_rows, length, seed, progress):
        rows.append((n_rows, length, seed, progress))
        return make(tokenizer, n_rows, length, seed, progress)

    def watched_step(weights, optimizers, ids, config, factor):
        loss = step(weights, optimizers, ids, config, factor)
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        steps.append((factor, *rates))
        return loss

    monkeypatch.setattr(pretrain, "training_rows", watched_rows)
    monkeypatch.setattr(pretrain, "train_step", watched_step)
    pretrain.train(tmp_path, **SHORT | {"seed": 3, "steps": 4})
    assert rows == [(2, 64, 30_000_000 + i, i / 4) for i in range(4)]
    factors = [0.01, 0.02, 0.03, 0.04]  # the warm-up
    assert steps == [(f, 0.01 * f, 0.003 * f, 0.003 * f) for f in factors]


def test_the_seed_decides_the_bytes(tmp_path, monkeypatch):
    _, one = run(tmp_path / "one", monkeypatch, steps=2)
    _, again = run(tmp_path / "a" / "longer name", monkeypatch, steps=2)
    _, other = run(tmp_path / "other", monkeypatch, steps=2, seed=1)
    assert one == again
    assert one[0] != other[0] and one[1:] == other[1:]


def test_what_a_run_leaves_behind(tmp_path, monkeypatch):
    weights, _ = run(tmp_path, monkeypatch, steps=3)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*FILES, "loss.svg", "training.json"}
    stored, config, tokenizer = load(tmp_path)
    assert config == SMALL and tokenizer.vocab_size == SMALL.vocab_size
    assert all(torch.equal(stored[name], weights[name].bfloat16()) for name in weights)
    assert ElementTree.parse(tmp_path / "loss.svg").getroot().tag.endswith("svg")
    log = json.loads((tmp_path / "training.json").read_text())
    assert [row[0] for row in log["training"]] == [1, 2, 3]
    assert all(loss > floor > 0 for _, loss, floor in log["training"])
    assert log["held_out"][-1][0] == log["step"] == 3
    assert log["sessions"][0]["seconds"] > 0 and log["sessions"][0]["threads"] == 1
    assert log["settings"]["params"] == SMALL.to_params()


def test_an_unfinished_run_is_not_overwritten_and_not_taken_for_another(tmp_path, monkeypatch):
    killed_run(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="--resume continues it"):
        pretrain.train(tmp_path, **SHORT)
    with pytest.raises(InputError, match="'steps': 6.*expected.*'steps': 8"):
        pretrain.train(tmp_path, **SHORT | {"steps": 8, "resume": True})


def test_a_run_on_another_text_is_not_resumed(tmp_path, monkeypatch):
    killed_run(tmp_path, monkeypatch)
    monkeypatch.setattr(world, "PLACES", world.PLACES[::-1])
    with pytest.raises(InputError, match="'text': .*expected"):
        pretrain.train(tmp_path, **SHORT | {"resume": True})


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_not_trained_over(tmp_path, monkeypatch, resume):
    _, files = run(tmp_path, monkeypatch, steps=1)
    with pytest.raises(InputError, match="is of a finished run: remove .*, or name another --out"):
        pretrain.train(tmp_path, **SHORT | {"resume": resume})
    assert files == [(tmp_path / name).read_bytes() for name in FILES]


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit, match=r"error: --out .*file.*Name a folder to write into"):
            pretrain.main(["--out", str(out)])

    def full(state, path):
        path.write_bytes(b"some")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="cannot be written .*is the disk full"):
        pretrain.train(tmp_path / "out", **SHORT)
    assert not list((tmp_path / "out").iterdir())


def broken(state):
    """What a state may be instead of itself."""
    yield "a list", [1, 2]
    yield "nothing", {}
    for key in state:
        yield f"no {key}", {k: v for k, v in state.items() if k != key}
    for key in ("settings", "step"):
        yield f"no {key}", state | {"log": {k: v for k, v in state["log"].items() if k != key}}
    weights = state["weights"]
    yield "no norm", state | {"weights": {k: v for k, v in weights.items() if k != "norm.weight"}}
    yield "a shape", state | {"weights": weights | {"norm.weight": torch.ones(5)}}
    yield "one optimizer", state | {"optimizers": state["optimizers"][:1]}


def test_a_damaged_state_is_refused(tmp_path, monkeypatch):
    killed_run(tmp_path, monkeypatch)
    path = tmp_path / pretrain.STATE
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    for what, wrong in broken(state):
        torch.save(wrong, path)
        with pytest.raises(InputError, match="is no saved state"):
            pretrain.train(tmp_path, **SHORT | {"resume": True})
            pytest.fail(what)
    middle = len(whole) // 2  # in the numbers of a tensor, where torch itself notices nothing
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    torch.load(path, weights_only=True)
    with pytest.raises(InputError, match="is damaged"):
        pretrain.train(tmp_path, **SHORT | {"resume": True})
    path.write_bytes(whole)
    pretrain.train(tmp_path, **SHORT | {"resume": True})  # the control


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", "more than tensors"])
def test_a_file_that_is_no_state_is_refused(tmp_path, content):
    path = tmp_path / pretrain.STATE
    if isinstance(content, str):
        torch.save({"log": Random(0)}, path)  # would have to be unpickled by its class
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="is no saved state"):
        pretrain.train(tmp_path, **SHORT | {"resume": True})


def test_means_cover_every_step_once():
    losses = torch.arange(7.0)[:, None].repeat(1, 2)
    assert list(pretrain.means(losses, points=3)) == [[3, 1.0, 1.0], [6, 4.0, 4.0], [7, 6.0, 6.0]]


# --- The command line -----------------------------------------------------------------------------


def test_the_command_line_passes_on_what_it_is_given(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(pretrain, "train", lambda **arguments: given.update(arguments))
    pretrain.main(["--out", str(tmp_path), "--steps", "9", "--seed", "2", "--threads", "1"])
    assert given == {"out": str(tmp_path), "steps": 9, "rows": 8, "length": 256, "seed": 2,
                     "resume": False}  # fmt: skip
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("argument, value", [
    ("--steps", "0"), ("--rows", "-1"), ("--length", "0"),
    ("--threads", "0"), ("--seed", "-1"), ("--seed", "1000000"),
    ("--length", "8193"),
])  # fmt: skip
def test_bad_arguments_are_refused_by_name(tmp_path, argument, value):
    with pytest.raises(SystemExit, match=f"error: {argument} is {value}: expected"):
        pretrain.main(["--out", str(tmp_path), argument, value])


def test_an_old_torch_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SystemExit, match="2.9 or later"):
        pretrain.main(["--out", str(tmp_path)])
