"""The exercises of notebook 08: min-p, repetition, a window, a stop string, beam search."""

import functools
import math
import operator
from dataclasses import dataclass
from itertools import accumulate

import torch

from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
)
from llama3_scratch.model import causal_mask

# --- Min-p ----------------------------------------------------------------------------------------


def _min_p_cases():
    one, two, three, four, five = drawn(11, (17,), (23,), (9,), (13,), (8,))
    return {
        "the logarithms of 4, 3, 2 and 1": (torch.tensor([4.0, 3, 2, 1]).log(), 0.35),
        "17 logits and min_p = 0.1": (3 * one, 0.1),
        "23 negative logits and min_p = 0.3": (2 * two - 8, 0.3),
        "9 logits near 100 and min_p = 0.7": (three / 2 + 100, 0.7),
        "13 logits and min_p = 1": (2 * four, 1.0),
        "three equal logits, the largest of five, and min_p = 1": (
            torch.tensor([2.0, -1, 2, 0, 2]), 1.0),
        "8 logits and min_p = 0": (five, 0.0),
    }  # fmt: skip


def _stay(logits, share):
    p = logits.softmax(-1)
    return p >= share * p.max()


def _kept(probabilities, stay):
    left = probabilities * stay
    return left / left.sum()


def _min_p(logits, share):
    return _kept(logits.softmax(-1), _stay(logits, share))


def _more_than_the_share(logits, share):
    p = logits.softmax(-1)
    return _kept(p, p > share * p.max())


def _share_of_the_logit(logits, share):
    return logits.masked_fill(logits < share * logits.max(), -math.inf).softmax(-1)


def _top_p(logits, share):
    p, order = logits.softmax(-1).sort(descending=True)
    left = p.masked_fill(p.cumsum(-1) - p > share, 0.0)
    return torch.zeros_like(p).scatter(-1, order, left / left.sum())


def _in_proportion(found, logits, share):
    p = logits.softmax(-1) * (found != 0)
    return agree(found, p / p.sum())


min_p = Exercise(
    "logits [V], min_p from 0 to 1 -> [V]: probabilities, 0 for tokens that are less than min_p "
    "times as likely as the likeliest.",
    right=_min_p,
    cases=_min_p_cases,
    mistakes=[
        (lambda logits, share: _kept(logits.softmax(-1), logits.softmax(-1) >= share),
         "the threshold is `min_p` itself. It should be `min_p` times the largest probability, so "
         "that more tokens stay where the model is unsure."),
        (lambda logits, share: logits.softmax(-1) * _stay(logits, share),
         "the probabilities that are left do not add up to 1: divide by their sum."),
        (lambda logits, share: (
            logits.softmax(-1) / logits.softmax(-1).max() * _stay(logits, share)),
         "you divide by the largest probability, which helps to compare. What is left in the end "
         "has to add up to 1: divide by its sum."),
        (_more_than_the_share,
         "a token exactly at the threshold is lost, and with min_p = 1 that is the likeliest "
         "itself: compare with `>=`."),
        (_share_of_the_logit,
         "you compare logits. A share of the largest logit means nothing, because adding the same "
         "number to all logits changes no probability. Compare probabilities."),
        (lambda logits, share: (logits * _stay(logits, share)).softmax(-1),
         "you set the logits of the others to 0, and the softmax makes e^0 = 1 of that. Set them "
         "to minus infinity, or the probabilities to 0."),
        (_top_p,
         "this is top-p: it looks at the sum of the likelier tokens. Min-p compares each token "
         "with the likeliest."),
        (lambda logits, share: logits.softmax(-1),
         "nothing is cut off: this is the softmax of all logits."),
        (lambda logits, share: logits.masked_fill(~_stay(logits, share), -math.inf),
         "these are logits. Return probabilities: one softmax is missing."),
        (lambda logits, share: _kept(logits.softmax(-1), ~_stay(logits, share)),
         "the wrong tokens stay: those below the threshold are kept, the others are cut off."),
        (lambda logits, share: _min_p(logits, share).sort(descending=True).values,
         "the probabilities are sorted. Each has to be at the place of its token."),
        (lambda logits, share: _min_p(logits, share).softmax(-1),
         "there is one softmax too many: it makes something larger than 0 of every 0."),
    ],
    properties=[
        (of_each(lambda found, logits, share: abs(float(found.sum()) - 1) < 1e-4),
         "the result does not add up to 1. Divide the probabilities that are left by their sum, at "
         "the end."),
        (of_each(lambda found, logits, share: agree(found != 0, _stay(logits, share))),
         "the wrong tokens stay. A token stays if its probability is at least `min_p` times the "
         "largest one; all others get exactly 0."),
        (of_each(_in_proportion),
         "the right tokens stay, but not with their own probabilities: all of them are divided by "
         "one number, the sum of what is left."),
    ],
)  # fmt: skip


# --- The repetition penalty -----------------------------------------------------------------------


def _penalise_cases():
    one, two, three = drawn(7, (13,), (19,), (11,))
    return [
        (torch.tensor([2.0, -1.0, 0.5, 3.0]), [0, 1, 1], 2.0),
        (3 * one, [2, 5, 5, 11, 2, 2, 8], 1.3),
        (2 * two - 1, [0, 18, 3, 3, 7], 1.7),
        (three + 0.5, [4, 4, 4, 1, 10, 6], 1.2),
    ]


def _down(logit, penalty):
    return logit / penalty if logit > 0 else logit * penalty


def _with(change, ids=set):
    def answer(logits, text, penalty):
        new = logits.clone()
        for token in ids(text):
            new[token] = change(new[token], penalty)
        return new

    return answer


def _divided_probabilities(logits, text, penalty):
    p = logits.softmax(-1)
    p[sorted(set(text))] /= penalty
    return (p / p.sum()).log()


def _logits_of(text, found, logits, sign):
    """The logits of the text's tokens that have this sign: (new, old)."""
    at = [token for token in sorted(set(text)) if sign * logits[token] > 0]
    return found[at], logits[at]


def _divided(found, logits, text, penalty):
    new, old = _logits_of(text, found, logits, 1)
    return agree(new, old / penalty)


def _multiplied(found, logits, text, penalty):
    new, old = _logits_of(text, found, logits, -1)
    return agree(new, old * penalty)


def _others_stay(found, logits, text, penalty):
    others = [token for token in range(len(logits)) if token not in text]
    return agree(found[others], logits[others])


penalise = Exercise(
    "logits [V], the text's ids, penalty > 1 -> [V]: positive logits of these ids divided by the "
    "penalty, negative ones multiplied by it.",
    right=_with(_down),
    cases=_penalise_cases,
    mistakes=[
        (_with(lambda logit, penalty: logit / penalty),
         "you divide the negative logits too. Divided, a negative number comes nearer to 0 and the "
         "token becomes likelier: multiply it."),
        (_with(lambda logit, penalty: logit * penalty),
         "you multiply all of them. That makes positive logits larger: divide those."),
        (_with(lambda logit, penalty: logit * penalty if logit > 0 else logit / penalty),
         "multiplication and division are exchanged: a penalty greater than 1 should make every "
         "logit smaller."),
        (_with(_down, list),
         "a token that occurs three times is changed three times. Change each once, however often "
         "it occurs: go through `set(ids)`."),
        (_with(lambda logit, penalty: logit - penalty),
         "you subtract the penalty. In this rule positive logits are divided by it and negative "
         "ones multiplied."),
        (_with(lambda logit, penalty: logit / penalty if logit > 0 else logit),
         "negative logits stay as they are. Multiplied by the penalty, they become smaller like "
         "the others."),
        (_with(lambda logit, penalty: logit if logit > 0 else logit * penalty),
         "positive logits stay as they are. Divided by the penalty, they become smaller like the "
         "others."),
        (lambda logits, text, penalty: _with(_down)(logits, range(len(logits)), penalty),
         "you change every token. Change only those that occur in the text."),
        (lambda logits, text, penalty: _with(_down)(
            logits, [t for t in range(len(logits)) if t not in text], penalty),
         "you change the tokens that do not occur in the text. Change those that do."),
        (_with(_down, lambda text: text[-1:]),
         "you change only the last token of the text."),
        (_with(_down, lambda text: set(text[:-1])),
         "the last token of the text is left out. It stands in the text like the others."),
        (_with(_down, lambda text: {t for t in text if text.count(t) > 1}),
         "you change only tokens that occur more than once. One time is enough."),
        (_divided_probabilities,
         "you divide the probabilities. The rule is about logits; the softmax comes afterwards."),
        (lambda logits, text, penalty: _with(_down)(logits, text, penalty).softmax(-1),
         "these are probabilities. Return logits; the softmax comes afterwards."),
    ],
    properties=[
        (of_each(_others_stay),
         "the logit of a token that does not occur in the text has changed. Copy the logits, then "
         "change only those of `ids`."),
        (of_each(_divided),
         "a positive logit of a token in the text is not what it should be: divided by the "
         "penalty, once, however often the token occurs."),
        (of_each(_multiplied),
         "a negative logit of a token in the text is not what it should be: multiplied by the "
         "penalty, once, however often the token occurs."),
    ],
)  # fmt: skip


# --- A sliding window -----------------------------------------------------------------------------


def _distances(start, stop):
    return torch.arange(start, stop)[:, None] - torch.arange(stop)


def _masked(seen):
    """A mask from (distance back, window) -> whether the key is seen."""

    def mask(start, stop, window):
        return torch.where(seen(_distances(start, stop), window), 0.0, -math.inf)

    return mask


def _window_mask(start, stop, window):
    causal = causal_mask(torch.arange(start, stop), stop)
    return causal.masked_fill(_distances(start, stop) >= window, -math.inf)


def _rows_from_0(start, stop, window):
    return _window_mask(0, stop, window)[: stop - start]


def _rows_see(count):
    """A property: each row of the mask sees so many keys as (position, window) says."""

    def holds(found, start, stop, window):
        seen = [int(n) for n in (found == 0).sum(-1)]
        return seen == [count(position, window) for position in range(start, stop)]

    return of_each(holds)


window_mask = Exercise(
    "start, stop, window -> [T, S]: 0 where a query may attend, minus infinity elsewhere. The T "
    "queries are at positions start to stop - 1, the S = stop keys at positions 0 to stop - 1.",
    right=_window_mask,
    cases=lambda: [(1, 4, 2), (0, 7, 3), (4, 9, 3), (7, 8, 4), (2, 6, 9), (5, 11, 1), (0, 1, 1)],
    mistakes=[
        (_masked(lambda back, window: (back >= 0) & (back <= window)),
         "there is one key too many: the window includes the query itself, so with a window of 3 "
         "the keys at distances 0, 1 and 2 are seen."),
        (_masked(lambda back, window: (back >= 0) & (back < window - 1)),
         "there is one key too few: with a window of 3 the keys at distances 0, 1 and 2 are seen."),
        (_masked(lambda back, window: (back > 0) & (back <= window)),
         "a query does not see itself. Distance 0 belongs to the window."),
        (_masked(lambda back, window: (back > 0) & (back < window)),
         "a query does not see itself. Distance 0 belongs to the window, as its first key."),
        (_masked(lambda back, window: back.abs() < window),
         "the future is open: keys after the query are seen too. The window only reaches back."),
        (_masked(lambda back, window: back < window),
         "the causal part is missing: every key that is not too old is seen, and so is the "
         "future."),
        (_masked(lambda back, window: back >= 0),
         "this is the causal mask without a window: old keys are still seen."),
        (_masked(lambda back, window: back >= window),
         "only the old keys are seen, those that the window should hide."),
        (_masked(lambda back, window: (back < 0) | (back >= window)),
         "this hides what the window should show, and shows what it should hide."),
        (_masked(lambda back, window: (-back >= 0) & (-back < window)),
         "the window reaches into the future. It should reach back: the distance is the query's "
         "position minus the key's."),
        (_rows_from_0,
         "the rows begin at position 0. With tokens in the cache the first query is at position "
         "`start`."),
        (lambda *case: _window_mask(*case) == 0,
         "it holds True where a query may attend. `attend` adds the mask to the scores: 0 there, "
         "and minus infinity elsewhere."),
        (lambda *case: _window_mask(*case) != 0,
         "it holds True where a query may not attend. `attend` adds the mask to the scores: minus "
         "infinity there, and 0 elsewhere."),
        (lambda *case: (_window_mask(*case) != 0) * -math.inf,
         "you multiply by minus infinity, and 0 times infinity is not a number (NaN). Choose with "
         "`torch.where`, or fill with `masked_fill`."),
        (lambda *case: (_window_mask(*case) == 0).float(),
         "it holds ones and zeros, for multiplying. `attend` adds the mask to the scores: 0 where "
         "a query may attend, minus infinity elsewhere."),
        (lambda *case: -_window_mask(*case),
         "the infinity is positive: the softmax would give everything to the hidden keys."),
        (lambda *case: _window_mask(*case).clamp(min=-1e9),
         "it holds a large negative number. That works while the scores are small compared with "
         "it; minus infinity, -math.inf, works always."),
    ],
    properties=[
        (of_each(lambda found, *case: bool(((found == 0) | (found == -math.inf)).all())),
         "it holds other numbers than 0 and minus infinity. `attend` adds the mask to the scores: "
         "0 where a query may attend, minus infinity elsewhere."),
        (of_each(lambda found, start, stop, window: bool(
            (found.diagonal(start) == 0).all())),
         "a query does not see itself: in row t, where the query is at position start + t, the key "
         "at that position is hidden."),
        (of_each(lambda found, start, stop, window: bool(
            (found[_distances(start, stop) < 0] != 0).all())),
         "the future is open: a query sees a key whose position is larger than its own."),
        (_rows_see(lambda position, window: min(position + 1, window)),
         "a query sees too many or too few keys: it should see `window` of them, itself among "
         "them, or all where there are fewer."),
    ],
)  # fmt: skip


# --- A stop string --------------------------------------------------------------------------------


def _stop_string_cases():
    return [
        (["a#", "b", "#!c"], "#!"),
        (["How are", " you?\n", "User", ":", " fine"], "\nUser:"),
        (["a", "b\nUser: and more", "z"], "\nUser:"),
        (["one\nUs", "e it", "."], "\nUser:"),
        (["it ends with\n", "User"], "\nUser:"),
        (["a#", "#", "#", "!b"], "##!"),
        (["x<", "/s", ">"], "</s>"),
        (["no ", "w.", "Then"], "."),
        (["one::two::", "three"], "::"),
        (["it<", "", "b", ""], "<e>"),
        (["</s>no"], "</s>"),
    ]


def _listed(answer, pieces, stop):
    result = answer(pieces, stop)  # perhaps from a generator
    return result if result is None or isinstance(result, str) else list(result)


def _begun(text, stop, sizes):
    """How many characters at the end of a text may be the beginning of the stop string."""
    return next((n for n in sizes if n and text.endswith(stop[:n])), 0)


def _longest(n):
    return range(n - 1, 0, -1)


def _hold_back(sizes=_longest, at=lambda text, stop: text.find(stop), after=0, rest=True):
    def answer(pieces, stop):
        texts, held = [], ""
        for piece in pieces:
            held += piece
            found = at(held, stop)
            if found >= 0:
                return [*texts, held[: found + after * len(stop)]]
            cut = len(held) - _begun(held, stop, sizes(len(stop)))
            texts.append(held[:cut])
            held = held[cut:]
        return [*texts, held] if rest else texts

    return answer


_shown = _hold_back()


def _each_alone(pieces, stop):
    texts = []
    for piece in pieces:
        if stop in piece:
            return [*texts, piece[: piece.index(stop)]]
        texts.append(piece)
    return [*texts, ""]


def _never_held(pieces, stop):
    texts = []
    for piece in pieces:
        before = "".join(texts)
        if stop in before + piece:
            return [*texts, (before + piece)[len(before) : (before + piece).index(stop)]]
        texts.append(piece)
    return [*texts, ""]


def _always_held(pieces, stop):
    texts, held = [], ""
    for piece in pieces:
        held += piece
        if stop in held:
            return [*texts, held[: held.index(stop)]]
        cut = max(0, len(held) - len(stop) + 1)
        texts.append(held[:cut])
        held = held[cut:]
    return [*texts, held]


def _minus_zero(pieces, stop):
    texts, held = [], ""
    for piece in pieces:
        held += piece
        if stop in held:
            return [*texts, held[: held.index(stop)]]
        size = _begun(held, stop, _longest(len(stop)))
        texts.append(held[:-size])
        held = held[-size:]
    return [*texts, held]


def _at_the_end(pieces, stop):
    texts = []
    for text in accumulate(pieces):
        if stop in text:
            return [*texts, text[: text.index(stop)]]
        texts.append("")
    return [*texts, "".join(pieces)]


def _ends_with(text, stop):
    return len(text) - len(stop) if text.endswith(stop) else -1


def _all_pieces(pieces, stop):
    texts = _shown(pieces, stop)
    return texts + [""] * (len(pieces) + (stop not in "".join(pieces)) - len(texts))


def _lengths(texts):
    return list(accumulate(map(len, texts)))


def _so_far(compare):
    """A property: the length shown after each piece, compared with the right one."""

    def holds(found, pieces, stop):
        pairs = zip(_lengths(found), _lengths(_shown(pieces, stop)), strict=True)
        return all(compare(mine, ours) for mine, ours in pairs)

    return of_each(holds)


stop_string = Exercise(
    "Pieces of text, a stop string -> a list: what can be shown after each piece, and at the end "
    "what is still held back.",
    right=_shown,
    cases=_stop_string_cases,
    run=_listed,
    mistakes=[
        (_each_alone,
         "you look at each piece alone. A stop string may begin in one piece and end in the next."),
        (_never_held,
         "the beginning of the stop string is already on the screen when the rest of it comes. "
         "Hold back an end that may become it."),
        (_always_held,
         "you hold back more than needed: always as much as the stop string is long. Only an end "
         "of the text that is a beginning of the stop string has to wait."),
        (_minus_zero,
         "when nothing has to wait, you hold back everything: `text[:-0]` is empty, and "
         "`text[-0:]` is the whole text. Cut at `len(text) - n`."),
        (_at_the_end,
         "nothing is shown before the stop string has come, or the end. Only an end of the text "
         "that is a beginning of the stop string has to wait."),
        (_hold_back(after=1),
         "the stop string itself is shown. The text ends before it."),
        (_hold_back(at=_ends_with),
         "you ask whether the text ends with the stop string. A piece may go on after it."),
        (_hold_back(at=lambda text, stop: text.rfind(stop)),
         "the stop string comes twice in one piece, and you stop at the second one. The text ends "
         "before the first."),
        (_hold_back(rest=False),
         "what is held back when the pieces come to an end is lost: it was no stop string, so it "
         "belongs to the text, as one more entry."),
        (lambda pieces, stop: [t for i, t in enumerate(_shown(pieces, stop)) if t or i < len(
            pieces)],
         "where nothing is held back at the end, the last entry is missing: if no piece completes "
         "the stop string, there is one more entry, even if it is empty."),
        (_hold_back(lambda n: range(1, n)),
         "you hold back the shortest end that may become the stop string. Several ends may, as `#` "
         "and `##` for `##!`: hold back the longest."),
        (lambda pieces, stop: [text for text in _shown(pieces, stop) if text],
         "an entry is missing where nothing can be shown: every piece has its own, even if it is "
         "empty."),
        (lambda pieces, stop: list(accumulate(_shown(pieces, stop))),
         "each entry is the whole text so far. It should be what this piece adds to it."),
        (_all_pieces,
         "the list goes on after the stop string. It ends with the piece that completes it."),
        (lambda pieces, stop: "".join(pieces).split(stop)[0],
         "this is the whole text in one. Return a list: what can be shown after each piece."),
    ],
    properties=[
        (of_each(lambda found, pieces, stop: stop not in "".join(found)),
         "the stop string is shown. It may begin in one piece and end in another; the text ends "
         "before its first character."),
        (of_each(lambda found, pieces, stop: "".join(found) == "".join(pieces).split(stop)[0]),
         "the entries, joined, are not the text before the stop string: something is lost, added "
         "or shown twice."),
        (of_each(lambda found, pieces, stop: len(found) == len(_shown(pieces, stop))),
         "the number of entries is wrong: one for each piece, up to the one that completes the "
         "stop string; if none does, one more for what is still held back."),
        (_so_far(operator.le),
         "something is shown too early: an end that may become the stop string has to wait, the "
         "longest such end."),
        (_so_far(operator.ge),
         "something is shown too late: only an end that may become the stop string has to wait."),
    ],
)  # fmt: skip


# --- Beam search ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomModel:
    """ids -> the next token's log-probabilities [V], which depend on the last two ids."""

    V: int
    seed: int

    def __call__(self, ids):
        last_two = tuple(int(token) for token in [0, 0, *ids][-2:])
        return _table(self.V, self.seed, torch.get_default_device())[last_two].clone()


@functools.cache
def _table(V, seed, device):
    return (1.5 * drawn(seed, (V, V, V))[0]).log_softmax(-1)


def _beam_search_cases():
    return {  # models for which every mistake shows in one of the cases
        "a small model": (RandomModel(3, 285), [0], 3),
        "model A": (RandomModel(6, 32), [0, 1], 5),
        "model B": (RandomModel(5, 22), [2, 4, 3], 4),
        "model B after another prompt": (RandomModel(5, 22), [3, 1], 5),
        "model C": (RandomModel(7, 2), [6, 6], 6),
        "model D": (RandomModel(6, 16), [1, 5], 3),
        "model E": (RandomModel(5, 45), [0, 0, 2], 7),
        "model E, one new token": (RandomModel(5, 45), [1, 3], 1),
    }


def _search(width=2, score=lambda total, log: total + log, each=None, at=0, best=max, keep=max):
    def found(log_probabilities, prompt, n_new):
        beams = [(0.0, list(prompt))]
        for step in range(n_new):
            grown = []
            for total, ids in beams:
                logs = enumerate(log_probabilities(ids).tolist())
                new = [(score(total, log), [*ids, token]) for token, log in logs]
                new.sort(key=lambda beam: beam[0], reverse=best is max)
                grown += new[: each if each and step else width]
            grown.sort(key=lambda beam: beam[0], reverse=keep is max)
            beams = grown[:width]
        return beams[min(at, len(beams) - 1)][1][len(prompt) :]

    return found


_beam_search = _search()


def _by_last_token(*rows):
    """A model made by hand: the last id -> its row of probabilities, as logarithms."""
    table = torch.tensor(rows).clamp(min=1e-9).log()
    return lambda ids: table[int(ids[-1])].clone()


def _finds(new, *rows):
    """A property: behind the prompt [3] of such a model, these are the new ids."""
    return lambda answer, given, cases: (
        [int(token) for token in answer(_by_last_token(*rows), [3], len(new))] == new
    )


ANY = [0.25, 0.25, 0.25, 0.25]  # a token after which all four are equally likely

beam_search = Exercise(
    "log_probabilities (a function: ids -> [V]), the prompt's ids, n_new -> the n_new new ids of "
    "the likelier text that a beam search of width 2 ends with.",
    right=_beam_search,
    cases=_beam_search_cases,
    mistakes=[
        (_search(1),
         "this is the greedy text: one beam, or two that are always equal. From the one text at "
         "the beginning, the two likeliest tokens make two different beams."),
        (_search(2, each=1),
         "each beam goes on with its own best token, so one text cannot take both places. Of the "
         "four continuations the best two stay, wherever they come from."),
        (_search(2, score=lambda total, log: log),
         "you rank by the last token alone. A text's score is the sum over all its new tokens."),
        (_search(2, score=lambda total, log: total + math.exp(log)),
         "you add probabilities. Multiply them, or add their logarithms."),
        (_search(2, at=1),
         "this is the second of the two texts. Return the likelier one."),
        (_search(2, best=min, keep=min),
         "you keep the least likely texts: a log-probability nearer to 0 is the better one."),
        (_search(2, keep=min),
         "the continuations are sorted with the least likely first, and you keep the first two: "
         "sort them the other way."),
        (_search(3),
         "the beam is wider than two."),
        (_search(9),
         "the beam is much wider than two. After each new token only the best two texts stay."),
        (lambda log_probabilities, prompt, n_new: _beam_search(log_probabilities, [], n_new),
         "`log_probabilities` gets the new ids alone. The prompt comes before them."),
        (lambda log_probabilities, prompt, n_new: [
            *prompt, *_beam_search(log_probabilities, prompt, n_new)],
         "right, but with the prompt before it: return the new ids alone."),
    ],
    properties=[
        (of_each(lambda found, log_probabilities, prompt, n_new: len(found) == n_new),
         "the result does not have n_new ids. Return the new ids alone, without the prompt."),
        (answer_property(lambda answer, log_probabilities, prompt, n_new: (
            [int(token) for token in answer(log_probabilities, prompt, 1)]
            == [int(log_probabilities(prompt).argmax())])),
         "for n_new = 1 the result is not the likeliest next token. Are the texts sorted the right "
         "way, and does the prompt reach `log_probabilities`?"),
        (_finds([1, 2], ANY, [0.0, 0.0, 0.97, 0.03], ANY, [0.6, 0.4, 0.0, 0.0]),
         "the likelier text is missed where it begins with the second likeliest token. Keep two "
         "different texts, and compare them by the sum of their log-probabilities."),
        (_finds([0, 2], [0.0, 0.0, 0.55, 0.45], [0.0, 0.0, 0.97, 0.03], ANY,
                [0.55, 0.25, 0.2, 0.0]),
         "a text with a likely last token is taken for the likelier one. Compare whole texts: add "
         "the logarithms of the probabilities of all new tokens."),
        (_finds([0, 1, 3], [0.05, 0.45, 0.5, 0.0], [0.0, 0.01, 0.0, 0.99], ANY,
                [0.9, 0.1, 0.0, 0.0]),
         "the likelier text is missed where the best two begin with the same token. Sort the "
         "continuations of both texts together, then keep two."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
