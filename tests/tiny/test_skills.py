"""What the shipped model can do, with bars; and that the measures measure what they say."""

import math
from functools import cache
from random import Random

import pytest
import torch

from llama3_scratch import PROMPT, Config, Tokenizer, forward, load, random_weights, save
from llama3_scratch.tiny import heads, pretrain, skills, world
from llama3_scratch.tokenizer import N_SPECIAL

# What the shipped checkpoint must reach, and what `random` must not.
BARS = {
    "answers": {  # share of right ones, at least
        "42": 0.95, "capital": 0.95, "colour": 0.95, "comparison": 0.95, "comparison of two": 0.95,
        "count": 0.95, "difference": 0.95, "fact": 0.95, "held-out sum": 0.80, "need": 0.95,
        "pronoun": 0.95, "quotation": 0.95, "repeat": 0.95, "series": 0.95, "sum": 0.95,
        "sum in words": 0.95, "what has": 0.95, "what wants": 0.95, "where person": 0.95,
        "where thing": 0.95, "who has": 0.95,
    },
    "held out over floor": 1.05,  # at most
    "42": 0.9,  # probability after the book's prompt, at least
    "quotations": len(world.QUOTATIONS),  # completed word for word
    "second copy": {4: 0.05, 8: 0.05, 16: 0.05, 24: 0.05},  # words: nats a token, at most
    "heads": {  # mean attention probability of the best head, at least
        "previous token": 0.35, "rest on the first token": 0.2, "induction": 0.9,
        "pronoun to name": 0.6, "question to answer": 0.9,
    },
    "median head": 0.3,  # at most, of any of these patterns
}  # fmt: skip

SMALL = Config(
    dim=24, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=500 + N_SPECIAL, multiple_of=4,
    norm_eps=1e-5, rope_theta=500000.0, ffn_dim_multiplier=1.3,
)  # fmt: skip


@cache
def tokenizer():
    return pretrain.make_tokenizer(SMALL.vocab_size - N_SPECIAL)


def small_model(*zero):
    """Random weights, but for those whose names end in one of `zero`."""
    weights = random_weights(SMALL, seed=5)
    for name in weights:
        if name.endswith(zero):
            weights[name] = torch.zeros_like(weights[name])
    return weights, SMALL, tokenizer()


# --- The shipped model ----------------------------------------------------------------------------


def missed(name, n_documents):
    """The bars that a checkpoint does not reach, and all that were tried."""
    model = load(name, dtype=torch.float32)
    tried = {}
    for skill, found in skills.skills(model, n_documents).items():
        tried[skill] = found.right, found.right >= BARS["answers"][skill]
        tried[skill, "chance"] = found.chance, found.right > found.chance or found.chance == 1
    loss, floor = skills.held_out_loss(model)
    tried["loss"] = loss / floor, loss / floor <= BARS["held out over floor"]
    chance = skills.probability_of_42(model)
    tried["prompt"] = chance, chance >= BARS["42"]
    completed, _ = skills.quotations(model)
    tried["quotations"] = completed, completed >= BARS["quotations"]
    found = skills.repeats(model)
    for words, most in BARS["second copy"].items():
        tried[words] = found[words][1], found[words][1] <= most
    for pattern, (scores, _) in heads.heads(model, 20).items():
        tried[pattern] = float(scores.max()), scores.max() >= BARS["heads"][pattern]
        tried[pattern, "median"] = float(scores.median()), scores.median() <= BARS["median head"]
    return {what: value for what, (value, right) in tried.items() if not right}, tried


def test_the_shipped_model_reaches_every_bar():
    failed, tried = missed("tiny", n_documents=120)
    assert not failed
    assert set(BARS["answers"]) <= set(tried)


def test_the_random_model_reaches_none():
    failed, tried = missed("random", n_documents=30)
    bars = {what for what in tried if not isinstance(what, tuple)}  # not chance, not the medians
    assert len(bars) >= 30 and bars <= set(failed)


# --- Reading and answers --------------------------------------------------------------------------


def test_rows_read_together_are_as_read_alone():
    model, rows = small_model(), [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [9, 3, 2]]
    together = skills.read(model, rows, batch=3)
    for row, (losses, hits) in zip(rows, together, strict=True):
        ((alone, alone_hits),) = skills.read(model, [row])
        assert losses.shape == hits.shape == (len(row) - 1,)
        torch.testing.assert_close(losses, alone)
        assert torch.equal(hits, alone_hits)


def oracle(wrong=()):
    """A `read` that is right everywhere but at the places `wrong` of each row."""

    def read(model, rows, batch=64):
        results = []
        for row in rows:
            hits = torch.ones(len(row) - 1, dtype=torch.bool)
            hits[[place for place in wrong if place < len(hits)]] = False
            results.append((torch.where(hits, 0.5, 2.0), hits))
        return results

    return read


def test_one_wrong_token_makes_an_answer_wrong(monkeypatch):
    document = world.Document("One plus two is three.", "sum", 1.0, (("sum", 15, 21),))
    _, ((_, start, stop),) = pretrain.encode(document, tokenizer())
    monkeypatch.setattr(world, "WRITERS", {"sum": None})
    monkeypatch.setattr(world, "document", lambda random, kind: document)
    for place, right in ((start - 2, 1.0), (start - 1, 0.0), (stop - 2, 0.0), (stop - 1, 1.0)):
        monkeypatch.setattr(skills, "read", oracle([place]))
        found = skills.skills(small_model(), 3)["sum"]
        assert (found.right, found.n) == (right, 3)


def test_every_skill_of_the_world_is_measured_and_has_a_bar(monkeypatch):
    monkeypatch.setattr(skills, "read", oracle())
    found = skills.skills(small_model(), 40)
    assert set(found) == set(BARS["answers"])
    assert all(skill.right == 1.0 and 0 < skill.chance <= 1 for skill in found.values())


def test_blind_guesses():
    text = "Mia is in the park. Ben is in the barn. Tom is in the park."
    assert skills.named(text, "barn") == ["park", "barn", "park"]
    assert skills.named(text, "Tom") == ["Mia", "Ben", "Tom"]
    assert skills.named("Mia wants a coat and some bread", "a bed") == ["a coat", "bread"]
    assert skills.named(text, "42") == []
    # one of two places named, one in two: 1/2; the commonest of four answers: 3/4
    cases = [(text, "park"), (text, "barn"), (text, "park"), (text, "park")]
    assert skills.blind(cases) == (0.75, 0.75)
    # one of three people: 1/3; the first or the last named: 2/3 of the time
    cases = [(text, "Mia"), (text, "Ben"), (text, "Mia")]
    assert skills.blind(cases[:2] + [(text, "Tom")]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert skills.blind(cases)[1] == pytest.approx(2 / 3)
    # two places named, one of them twice: 1/2, more than the commonest of three answers
    other, third = text.replace("park", "attic"), text.replace("park", "castle")
    cases = [(text, "park"), (other, "attic"), (third, "castle")]
    assert skills.blind(cases)[0] == 0.5
    # not in the text: the commonest, and no rule; him is he
    assert skills.blind([("3 + 4 =", "7"), ("1 + 1 =", "2")]) == (0.5, None)
    assert skills.blind([("", "him"), ("", "He"), ("", "he"), ("", "she")]) == (0.75, None)


def test_repeats_are_measured_from_the_second_word_of_each_copy(monkeypatch):
    lengths = []

    def read(model, rows, batch=64):
        lengths.append(len(rows))
        assert all(row.count(model[2].bos_id) == 1 for row in rows)
        return oracle(range(4))(model, rows)

    monkeypatch.setattr(skills, "read", read)
    table = skills.repeats(small_model(), 5)
    assert list(table) == list(skills.LENGTHS) and lengths == [5] * len(skills.LENGTHS)
    for words, (first, second, hits) in table.items():
        assert 0.5 <= first < 2.0 and second == 0.5 and hits == 1.0, words


def test_a_model_that_knows_nothing():
    model = small_model("output.weight")  # all logits 0
    assert skills.probability_of_42(model) == pytest.approx(1 / SMALL.vocab_size)
    loss, floor = skills.held_out_loss(model, 10)
    assert loss == pytest.approx(math.log(SMALL.vocab_size), rel=1e-5)
    assert 0.3 < floor < 1.5
    assert skills.quotations(model) == (0, len(world.QUOTATIONS))


def test_42_may_be_two_tokens():
    """With bytes alone it is `4` and then `2`, and both have to be foretold."""
    weights, config, _ = small_model()
    bytes_alone = Tokenizer({bytes([byte]): byte for byte in range(256)})
    ids = torch.tensor(bytes_alone.encode(PROMPT + "42"))
    chances = forward(weights, ids, config).softmax(-1)
    expected = float(chances[-3, ord("4")] * chances[-2, ord("2")])
    found = skills.probability_of_42((weights, config, bytes_alone))
    assert found == pytest.approx(expected, rel=1e-4) and found < 0.5 * chances[-3, ord("4")]


def test_all_quotations_count_and_their_first_two_words_do_not(monkeypatch):
    monkeypatch.setattr(skills, "read", oracle([0]))
    assert skills.quotations(small_model()) == (33, 33) == (len(world.QUOTATIONS),) * 2
    shortest = min(len(tokenizer().encode(text)) for text, *_ in world.QUOTATIONS)
    monkeypatch.setattr(skills, "read", oracle([shortest - 2]))
    assert skills.quotations(small_model())[0] == 0


# --- Heads ----------------------------------------------------------------------------------------


def looking(text, kind, answers):
    """What the functions that name pairs (query, key) are given: ids, answers, places."""
    document = world.Document(text, kind, 0.0, answers)
    ids, found = pretrain.encode(document, tokenizer())
    return {"ids": ids, "answers": found, "places": heads.Places(ids, tokenizer())}


def test_scores_of_hand_made_attention():
    T = 7
    previous = torch.eye(T).roll(-1, dims=1)  # row t has its 1 at t - 1
    previous[0] = torch.eye(T)[0]
    uniform = torch.tril(torch.ones(T, T)) / torch.arange(1.0, T + 1)[:, None]
    first = torch.zeros(T, T)
    first[:, 0] = 1
    probabilities = torch.stack([torch.stack([previous, uniform]), torch.stack([first, uniform])])
    ids = list(range(T))
    pairs = heads.pairs_previous(ids=ids)
    assert pairs == [(2, 1), (3, 2), (4, 3), (5, 4), (6, 5)]
    blind = sum(1 / (t + 1) for t in range(2, T))
    expected = torch.tensor([[5.0, blind], [0.0, blind]])
    torch.testing.assert_close(heads.head_scores(probabilities, pairs), expected)
    pairs = heads.pairs_first(ids=ids)
    blind = sum(1 / (t + 1) for t in range(1, T))
    expected = torch.tensor([[1.0, blind], [6.0, blind]])  # position 1's previous one is the first
    torch.testing.assert_close(heads.head_scores(probabilities, pairs), expected)


def test_a_model_that_attends_evenly_has_the_closed_form_everywhere():
    table = heads.heads(small_model("attention.wq.weight"), 6)
    random = Random(pretrain.SKILLS_SEED).random
    stories = [world.document(random, "story") for _ in range(6)]
    lengths = [len(pretrain.encode(story, tokenizer())[0]) for story in stories]
    for name, skipped in (("previous token", 2), ("rest on the first token", 1)):
        shares = [1 / (t + 1) for n in lengths for t in range(skipped, n)]
        scores, n_pairs = table[name]
        assert scores.shape == (2, 4) and n_pairs == len(shares)
        torch.testing.assert_close(scores, torch.full((2, 4), sum(shares) / n_pairs))
    for scores, _ in table.values():
        torch.testing.assert_close(scores, scores[0, 0].expand(2, 4))


def test_induction_looks_at_what_followed_in_the_first_copy():
    text = "Read: barn kite zebra. Again: barn kite zebra."
    where = looking(text, "repeat", (("repeat", 34, 45),))
    pairs = heads.pairs_induction(**where)
    ids, (_, start, stop) = where["ids"], where["answers"][0]
    assert len(pairs) == stop - start > 2
    assert [query for query, _ in pairs] == list(range(start - 1, stop - 1))
    for query, key in pairs:
        assert ids[key] == ids[query + 1] and ids[key - 1] == ids[query]
        assert where["places"].starts[key] < text.index(".")
    assert heads.pairs_induction(**where | {"answers": [("fact", start, stop)]}) == []


def test_pronoun_pairs_point_to_the_last_fitting_name():
    text = "Anna is cold. Lily is wet. Ben is ill, so she wants a towel."
    stop = text.index(" she") + 4
    where = looking(text, "needs", (("pronoun", stop - 4, stop),))
    ((query, key),) = heads.pairs_pronoun(**where)
    assert where["places"].text(1, query + 1) == text[: stop - 4]
    end_of_name = where["places"].starts[key + 1]
    assert text[:end_of_name].endswith("Lily")
    nobody = looking("Ben is ill, so she wants", "needs", (("pronoun", 14, 18),))
    assert heads.pairs_pronoun(**nobody) == []


def test_answer_pairs_exist_only_for_answers_that_occur_once():
    once = "Ben likes tea. Mia likes cake. What does Mia like? Mia likes cake."
    where = looking(once, "facts", (("fact", once.rindex(" cake"), once.rindex(".")),))
    ((query, key),) = heads.pairs_answer("fact")(**where)
    assert where["places"].text(1, query + 1).endswith("Mia like? Mia likes")
    assert once.index(" cake") <= where["places"].starts[key] <= once.index("cake")
    assert heads.pairs_answer("capital")(**where) == []
    twice = "Mia likes cake. " + once
    where = looking(twice, "facts", (("fact", twice.rindex(" cake"), twice.rindex(".")),))
    assert heads.pairs_answer("fact")(**where) == []


# --- The command line -----------------------------------------------------------------------------


def test_the_report_names_every_skill_and_pattern(tmp_path, capsys, monkeypatch):
    weights, config, _ = small_model()
    save(tmp_path, weights, config, tokenizer())
    skills.main(["--checkpoint", str(tmp_path), "--documents", "20"])
    printed = capsys.readouterr().out
    for name in [*BARS["answers"], *heads.PATTERNS, *map(str, skills.LENGTHS)]:
        assert f"\n{name} " in printed or f" {name} " in printed, name


@pytest.mark.parametrize("arguments, message", [
    (["--documents", "0"], "--documents is 0"),
    (["--checkpoint", "no such folder"], "is not a checkpoint"),
])  # fmt: skip
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        skills.main(arguments)
