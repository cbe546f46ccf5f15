"""The exercises of notebook 08: right answers pass, and each mistake gets the word meant for it."""

import pytest
import torch

from llama3_scratch import check
from llama3_scratch.generate import token_probabilities


def said(capsys, checker, answer):
    checker(answer)
    return capsys.readouterr().out.strip()


def my_min_p(logits, min_p):
    lowest = logits.max() + torch.tensor(min_p).log()  # the same rule, in logits
    return logits.masked_fill(logits < lowest, -torch.inf).softmax(-1)


def my_penalise(logits, ids, penalty):
    at = torch.tensor(ids)
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return logits.scatter(0, at, lowered[at])


def my_window_mask(start, stop, window):
    rows = [
        [0.0 if 0 <= query - key < window else float("-inf") for key in range(stop)]
        for query in range(start, stop)
    ]
    return torch.tensor(rows)


def my_stop_string(pieces, stop):
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held[: held.index(stop)]
            return
        begun = [n for n in range(len(stop)) if held.endswith(stop[:n])]
        show = len(held) - max(begun)
        yield held[:show]
        held = held[show:]
    yield held


def my_beam_search(log_probabilities, prompt, n_new):
    beams = {(): 0.0}
    for _ in range(n_new):
        grown = {}
        for new, score in beams.items():
            logs = log_probabilities([*prompt, *new])
            grown |= {(*new, t): score + float(log) for t, log in enumerate(logs)}
        beams = dict(sorted(grown.items(), key=lambda item: -item[1])[:2])
    return torch.tensor(next(iter(beams)))


ALL = [
    (check.min_p, my_min_p), (check.penalise, my_penalise),
    (check.window_mask, my_window_mask), (check.stop_string, my_stop_string),
    (check.beam_search, my_beam_search),
]  # fmt: skip


@pytest.mark.parametrize("checker, answer", ALL)
def test_the_right_answer_is_right_and_an_empty_one_is_not(capsys, checker, answer):
    assert said(capsys, checker, answer).startswith("Right: ")
    assert "returned None" in said(capsys, checker, lambda *case: None)


def test_min_p_names_the_mistake(capsys):
    def unscaled(logits, min_p):
        p = logits.softmax(-1)
        p[p < min_p] = 0
        return p / p.sum()

    def sums_to_less(logits, min_p):
        p = logits.softmax(-1)
        return p.masked_fill(p < min_p * p.amax(), 0)

    def compared(logits, min_p):
        share = logits.softmax(-1) / logits.softmax(-1).max()
        return share.masked_fill(share < min_p, 0)

    def strictly_more(logits, min_p):
        p = logits.softmax(-1)
        p = torch.where(p > p.max() * min_p, p, 0)
        return p / p.sum()

    def share_of_the_logit(logits, min_p):
        return torch.where(logits >= min_p * logits.max(), logits, -torch.inf).softmax(-1)

    def zero_logits(logits, min_p):
        p = logits.softmax(-1)
        return torch.where(p >= min_p * p.max(), logits, 0.0).softmax(-1)

    def still_logits(logits, min_p):
        p = logits.softmax(-1)
        return torch.where(p >= min_p * p.max(), logits, -torch.inf)

    for wrong, message in (
        (unscaled, "the threshold is `min_p` itself"),
        (sums_to_less, "do not add up to 1"),
        (compared, "you divide by the largest probability"),
        (strictly_more, "ask for `>=`"),
        (share_of_the_logit, "you compare logits"),
        (zero_logits, "makes e^0 of that"),
        (lambda logits, p: token_probabilities(logits, top_p=p), "that is top-p"),
        (lambda logits, p: token_probabilities(logits), "nothing is cut away"),
        (still_logits, "one softmax is missing"),
        (lambda logits, p: logits.sort().values, "at [0] the value is"),
    ):
        assert message in said(capsys, check.min_p, wrong)


def test_penalise_names_the_mistake(capsys):
    def on_all_occurrences(change):
        def wrong(logits, ids, penalty):
            new = logits.clone()
            for token in ids:
                new[token] = change(new[token], penalty)
            return new

        return wrong

    def once(change):
        def wrong(logits, ids, penalty):
            new = [change(x, penalty) if i in ids else x for i, x in enumerate(logits)]
            return torch.stack(new)

        return wrong

    def everywhere(logits, ids, penalty):
        return torch.where(logits > 0, logits / penalty, logits * penalty)

    def last(logits, ids, penalty):
        return my_penalise(logits, ids[-1:], penalty)

    def of_probabilities(logits, ids, penalty):
        p = logits.softmax(-1)
        p = torch.stack([x / penalty if i in ids else x for i, x in enumerate(p)])
        return torch.log(p / p.sum())

    def in_place(logits, ids, penalty):
        logits[ids[0]] -= 1
        return logits

    for wrong, message in (
        (once(lambda x, p: x / p), "you divide the negative logits too"),
        (once(lambda x, p: x * p), "you multiply all of them"),
        (once(lambda x, p: x / p if x < 0 else x * p), "have changed places"),
        (on_all_occurrences(lambda x, p: x / p if x > 0 else x * p), "changed three times"),
        (once(lambda x, p: x - p), "you subtract the penalty"),
        (once(lambda x, p: x / p if x > 0 else x), "negative logits stay as they are"),
        (everywhere, "you change every token"),
        (last, "only the last token"),
        (of_probabilities, "you divide the probabilities"),
        (in_place, "it changes its arguments"),
    ):
        assert message in said(capsys, check.penalise, wrong)


def test_window_mask_names_the_mistake(capsys):
    def rows(sees):
        def wrong(start, stop, window):
            queries = range(start, stop)
            return torch.tensor([
                [0.0 if sees(q, k, window) else -torch.inf for k in range(stop)] for q in queries
            ])  # fmt: skip

        return wrong

    def from_0(start, stop, window):
        return my_window_mask(0, stop, window)[: stop - start]

    for wrong, message in (
        (rows(lambda q, k, w: q - w <= k <= q), "one key too many"),
        (rows(lambda q, k, w: q - w <= k < q), "a query does not see itself"),
        (rows(lambda q, k, w: abs(q - k) < w), "the future is open"),
        (rows(lambda q, k, w: k > q - w), "no causal part"),
        (rows(lambda q, k, w: k <= q), "without a window"),
        (rows(lambda q, k, w: k > q or k <= q - w), "hides what the window should show"),
        (from_0, "the rows begin at position 0"),
        (lambda *case: my_window_mask(*case) == 0, "True where a query may look"),
        (lambda *case: my_window_mask(*case) < 0, "True where a query may not look"),
        (lambda *case: torch.exp(my_window_mask(*case)), "ones and zeros"),
        (lambda *case: (my_window_mask(*case) < 0).float() * -torch.inf, "0 times infinity"),
        (lambda start, stop, window: my_window_mask(0, stop, window), "the shape is [9, 9]"),
    ):
        assert message in said(capsys, check.window_mask, wrong)


def test_stop_string_names_the_mistake(capsys):
    def piece_by_piece(pieces, stop):
        for piece in pieces:
            yield piece.split(stop)[0]
            if stop in piece:
                return
        yield ""

    def too_late(pieces, stop):
        text = ""
        for piece in pieces:
            before, text = text, text + piece
            if stop in text:
                yield text[len(before) : text.index(stop)]
                return
            yield piece
        yield ""

    def cautious(pieces, stop):
        held = ""
        for piece in pieces:
            held += piece
            if stop in held:
                yield held.split(stop)[0]
                return
            size = min(len(held), len(stop) - 1)
            yield held[: len(held) - size]
            held = held[len(held) - size :]
        yield held

    def all_at_once(pieces, stop):
        whole = "".join(pieces)
        if stop not in whole:
            return ["" for _ in pieces] + [whole]
        n = next(n for n in range(len(pieces)) if stop in "".join(pieces[: n + 1]))
        return [""] * n + [whole.split(stop)[0]]

    def with_it(pieces, stop):
        shown = list(my_stop_string(pieces, stop))
        return shown[:-1] + [shown[-1] + stop * (stop in "".join(pieces))]

    def only_at_the_end(pieces, stop):
        held = ""
        for piece in pieces:
            held += piece
            if held.endswith(stop):
                yield held.removesuffix(stop)
                return
            size = max(n for n in range(len(stop)) if held.endswith(stop[:n]))
            yield held[: len(held) - size]
            held = held[len(held) - size :]
        yield held

    def negative_index(pieces, stop):
        held = ""
        for piece in pieces:
            held += piece
            if stop in held:
                yield held.split(stop)[0]
                return
            size = max(n for n in range(len(stop)) if held.endswith(stop[:n]))
            yield held[:-size]
            held = held[-size:]
        yield held

    def so_far(pieces, stop):
        shown = list(my_stop_string(pieces, stop))
        return ["".join(shown[: i + 1]) for i in range(len(shown))]

    def no_empty_ones(pieces, stop):
        return [text for text in my_stop_string(pieces, stop) if text]

    def forgets(pieces, stop):
        shown = list(my_stop_string(pieces, stop))
        return shown if stop in "".join(pieces) else shown[:-1]

    def shortest(pieces, stop):
        held = ""
        for piece in pieces:
            held += piece
            if stop in held:
                yield held.split(stop)[0]
                return
            size = min((n for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
            yield held[: len(held) - size]
            held = held[len(held) - size :]
        yield held

    for wrong, message in (
        (piece_by_piece, "you look at each piece alone"),
        (too_late, "is on the screen already"),
        (cautious, "you hold back more than needed"),
        (all_at_once, "nothing is shown before the stop string has come"),
        (with_it, "the stop string itself is shown"),
        (only_at_the_end, "you ask whether the text ends with the stop string"),
        (forgets, "what is held back when the pieces run out is lost"),
        (shortest, "hold back the longest"),
        (lambda pieces, stop: "".join(pieces).partition(stop)[0], "the whole text in one"),
        (negative_index, "`text[:-0]` is empty"),
        (so_far, "the whole text so far"),
        (no_empty_ones, "an entry is missing where nothing can be shown"),
        (lambda pieces, stop: ["odd"], "the result has 1 entries"),
    ):
        assert message in said(capsys, check.stop_string, wrong)


def test_beam_search_names_the_mistake(capsys):
    def greedy(model, prompt, n_new):
        ids = list(prompt)
        for _ in range(n_new):
            ids.append(int(model(ids).argmax()))
        return ids[len(prompt) :]

    def two_equal_beams(model, prompt, n_new):
        beams = [([], 0.0), ([], 0.0)]
        for _ in range(n_new):
            grown = []
            for new, score in beams:
                values, tokens = model([*prompt, *new]).topk(2)
                grown += [
                    ([*new, int(t)], score + float(v)) for v, t in zip(values, tokens, strict=True)
                ]
            beams = sorted(grown, key=lambda beam: -beam[1])[:2]
        return beams[0][0]

    def two_greedy(model, prompt, n_new):
        starts = model(prompt).topk(2).indices.tolist()
        texts = [[t, *greedy(model, [*prompt, t], n_new - 1)] for t in starts]

        def total(new):
            ids = [*prompt, *new]
            return sum(float(model(ids[:i])[ids[i]]) for i in range(len(prompt), len(ids)))

        return max(texts, key=total)

    def beams(rank, width=2, answer=0, start=0.0):
        def wrong(model, prompt, n_new):
            texts = [([], start)]
            for _ in range(n_new):
                texts = [
                    ([*new, t], rank(score, log))
                    for new, score in texts
                    for t, log in enumerate(model([*prompt, *new]).tolist())
                ]
                texts = sorted(texts, key=lambda text: -text[1])[:width]
            return texts[answer][0]

        return wrong

    def added(score, log):
        return score + log

    def with_prompt(model, prompt, n_new):
        return [*prompt, *my_beam_search(model, prompt, n_new).tolist()]

    def without_prompt(model, prompt, n_new):
        beams = [([], 0.0)]
        for _ in range(n_new):
            grown = []
            for new, score in beams:
                logs = model(torch.tensor(new, dtype=torch.long)).tolist()
                grown += [([*new, t], score + log) for t, log in enumerate(logs)]
            beams = sorted(grown, key=lambda beam: -beam[1])[:2]
        return beams[0][0]

    def ascending(model, prompt, n_new):
        beams = [(0.0, list(prompt))]
        for _ in range(n_new):
            grown = []
            for score, ids in beams:
                values, tokens = model(ids).topk(2)
                grown += [
                    (score + float(v), [*ids, int(t)]) for v, t in zip(values, tokens, strict=True)
                ]
            beams = sorted(grown)[:2]
        return beams[0][1][len(prompt) :]

    def both(model, prompt, n_new):
        return [my_beam_search(model, prompt, n_new).tolist()] * 2

    def worst(model, prompt, n_new):
        return my_beam_search(lambda ids: -model(ids), prompt, n_new)

    for wrong, message in (
        (greedy, "that is the greedy text"),
        (two_equal_beams, "that is the greedy text"),
        (two_greedy, "each beam goes on with its own best token"),
        (beams(lambda score, log: log), "you rank by the last token alone"),
        (beams(lambda score, log: score + 2.718281828**log), "you add probabilities"),
        (beams(added, answer=1), "that is the second of the two"),
        (worst, "you keep the least likely texts"),
        (beams(added, width=3), "the beam is wider than two"),
        (with_prompt, "give the new ids alone"),
        (ascending, "sorted from the least likely on"),
        (both, "the result has 2 entries"),
        (without_prompt, "what follows the new ids alone"),
        (lambda model, prompt, n_new: model(prompt).tolist()[:1], "entries"),
    ):
        assert message in said(capsys, check.beam_search, wrong), wrong
    multiplied = beams(lambda score, log: score * 2.718281828**log, start=1.0)
    assert said(capsys, check.beam_search, multiplied).startswith("Right: ")
