"""The exercises of notebook 08: choose a token, min-p, a grammar's mask, a stop string."""

import math
import operator
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

# --- Choose a token -------------------------------------------------------------------------------


def _choose_cases():
    one, two, three, four = drawn(8, (11,), (13,), (29,), (17,))
    settings = {  # logits, temperature, top_k, top_p, several r
        "temperature 0": (2 * two - 9, 0.0, 13, 1.0, (0.3, 0.97)),
        "temperature 0.5": (one, 0.5, 11, 1.0, (0.05, 0.55, 0.93)),
        "temperature 2": (two, 2.0, 13, 1.0, (0.25, 0.6, 0.9)),
        "top_k 3": (one, 1.0, 3, 1.0, (0.2, 0.5, 0.95)),
        "top_p 0.6": (two, 1.0, 13, 0.6, (0.1, 0.5, 0.8, 0.97)),
        "top_p 0.02": (one, 1.0, 11, 0.02, (0.99,)),
        "top_k 5, then top_p 0.8": (three, 1.0, 5, 0.8, (0.3, 0.7, 0.98)),
        "temperature 1.7 and top_p 0.7": (four, 1.7, 17, 0.7, (0.4, 0.75, 0.985)),
        "temperature 0.6, top_k 4 and top_p 0.9": (three, 0.6, 4, 0.9, (0.5, 0.96)),
        "logits near 100": (one + 100, 1.0, 11, 1.0, (0.4, 0.8)),
    }
    cases = {"r = 0.45": (torch.tensor([1.0, 4, 3, 2]).log(), 1.0, 4, 1.0, 0.45)}
    for name, (*setting, numbers) in settings.items():
        cases |= {f"{name}, r = {r}": (*setting, r) for r in numbers}
    return cases | {"r = 0": (two, 1.0, 13, 1.0, 0.0)}


def _softmax(logits, temperature):
    return (logits / temperature).softmax(-1)


def _first(p, top_k):
    return p[:top_k] / p[:top_k].sum()


def _nucleus(p, top_p):
    return p[p.cumsum(-1) - p <= top_p]


def _piece(p, r):
    return (p.cumsum(-1) <= r * p.sum()).sum()


def _chosen(warm=_softmax, first=_first, nucleus=_nucleus, piece=_piece, descending=True):
    def answer(logits, temperature, top_k, top_p, r):
        if temperature == 0:
            return int(logits.argmax())
        p, order = warm(logits, temperature).sort(descending=descending)
        return int(order[min(int(piece(nucleus(first(p, top_k), top_p), r)), len(order) - 1)])

    return answer


_choose = _chosen()


def _temperature_last(logits, temperature, top_k, top_p, r):
    if temperature == 0:
        return _choose(logits, temperature, top_k, top_p, r)
    p, order = logits.softmax(-1).sort(descending=True)
    return int(order[_piece(_nucleus(_first(p, top_k), top_p) ** (1 / temperature), r)])


def _in_order_of_ids(logits, temperature, top_k, top_p, r):
    if temperature == 0:
        return _choose(logits, temperature, top_k, top_p, r)
    p, order = _softmax(logits, temperature).sort(descending=True)
    kept = _nucleus(_first(p, top_k), top_p)
    return int(_piece(torch.zeros_like(p).scatter(0, order[: len(kept)], kept), r))


def _position(logits, temperature, top_k, top_p, r):
    order = logits.argsort(descending=True)
    return int((order == _choose(logits, temperature, top_k, top_p, r)).nonzero())


def _stays(found, logits, temperature, top_k, top_p, r):
    p, order = _softmax(logits, temperature or 1).sort(descending=True)
    return int(found) in order[: len(_nucleus(_first(p, top_k), top_p))].tolist()


def _is_likeliest(found, logits):
    return int(found) == int(logits.argmax())


choose = Exercise(
    "logits [V], a temperature, top_k from 1 to V, top_p, a number r from 0 up to 1 -> the id of "
    "one token: the likeliest at temperature 0, else that into whose piece r falls, the likeliest "
    "token's piece first.",
    right=_choose,
    cases=_choose_cases,
    mistakes=[
        (_chosen(lambda logits, temperature: (logits * temperature).softmax(-1)),
         "the logits are multiplied by the temperature. Divide: a small temperature makes likely "
         "tokens likelier."),
        (_chosen(lambda logits, temperature: logits.softmax(-1)),
         "the temperature has no effect. Divide the logits by it, before the softmax: "
         "probabilities that are all divided by the same number are the same again when their sum "
         "is made 1."),
        (_temperature_last,
         "the temperature comes last. Here it is the first step: top_k and top_p cut what the "
         "temperature has made of the probabilities."),
        (lambda logits, temperature, *rest: _choose(logits, temperature or 1.0, *rest),
         "temperature 0 is taken for 1. At 0 the likeliest token is chosen, whatever r is."),
        (lambda logits, *rest: int(logits.argmax()),
         "it is always the likeliest token: r has no effect."),
        (_chosen(nucleus=lambda p, top_p: p[: max(1, (p.cumsum(-1) <= top_p).sum())]),
         "top_p keeps one token too few. A token stays if what stands before it is at most top_p; "
         "you compare the sum that includes the token itself."),
        (_chosen(nucleus=lambda p, top_p: p),
         "top_p has no effect."),
        (_chosen(first=lambda p, top_k: p),
         "top_k has no effect."),
        (_chosen(first=lambda p, top_k: _first(p, top_k + 1)),
         "top_k keeps one token too many."),
        (_chosen(first=lambda p, top_k: p[:top_k]),
         "what top_k has left does not add up to 1 when top_p looks at it. Divide by its sum in "
         "between."),
        (_chosen(first=lambda p, top_k: p, nucleus=lambda p, top_p: p[p >= top_p * p.max()]),
         "this is min-p, which compares each token with the likeliest. top_p looks at the sum of "
         "the tokens before it."),
        (_chosen(piece=lambda p, r: min(int((p.cumsum(-1) <= r).sum()), len(p) - 1)),
         "after a cut the pieces do not reach to 1, and r may fall behind the last one. Divide the "
         "probabilities that are left by their sum."),
        (_chosen(piece=lambda p, r: min(int(_piece(p, r)) + 1, len(p) - 1)),
         "it is one piece too far: the piece of a token ends at the sum that includes it, and r "
         "lies before that end."),
        (_position,
         "this is the token's place among the sorted ones. Its id is what `sort` returns beside "
         "the values: `order[place]`."),
        (_in_order_of_ids,
         "the pieces lie in the order of the ids. Here the likeliest token's piece comes first, "
         "then that of the second likeliest, and so on."),
        (_chosen(descending=False),
         "the tokens are sorted the other way round, the least likely first."),
        (_chosen(lambda logits, temperature: (logits / temperature).exp()
                 .nan_to_num(posinf=math.nan)),
         "for large logits e to the logit is infinite, and infinity divided by infinity is no "
         "number. `softmax` subtracts the largest logit first."),
    ],
    properties=[
        (answer_property(lambda answer, *case: int(answer(*case)) == int(answer(*case))),
         "called twice with the same r, it chooses two different tokens. Use r, and no random "
         "numbers of your own."),
        (of_each(lambda found, logits, *rest: int(found) == found and 0 <= found < len(logits)),
         "the result is not the id of a token: a whole number from 0 to V - 1 is expected."),
        (of_each(lambda found, logits, temperature, *rest: (
            temperature > 0 or _is_likeliest(found, logits))),
         "at temperature 0 the result has to be the likeliest token, whatever r is."),
        (of_each(lambda found, logits, temperature, top_k, top_p, r: (
            r > 0 or _is_likeliest(found, logits))),
         "for r = 0 the result has to be the likeliest token: its piece is the first."),
        (of_each(_stays),
         "a token is chosen that should have been cut off. First the temperature, then the top_k "
         "likeliest, then of these, their sum made 1, all those before which at most top_p "
         "stands."),
    ],
    hints=(
        "Temperature 0 first, by itself. Then four steps, in the order of the text: softmax, sort, "
        "cut, cut. Keep the sorted values and their ids side by side: `sort` returns both.",
        "`cumsum` gives where each piece ends; the end minus the piece is what stands before it. "
        "How many pieces end at or before r times the sum of what is left?",
    ),
)  # fmt: skip


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
    hints=(
        "What is compared with what? Both numbers are probabilities, and one of them is the same "
        "for the whole row.",
        "The threshold is a product: `min_p` and the largest probability. What is left has to add "
        "up to 1.",
    ),
)  # fmt: skip


# --- A grammar's mask -----------------------------------------------------------------------------

TEXTS = ["<|end|>", " ", " B", " Ben", "Ben", " Bea", "en", "ea", "a", " has", " has it", " it",
         ".", " it.", "", "n", " Ben ran", "\ufffd", " i", "t.", " has it. "]  # fmt: skip


def _constrain_cases():
    ours = [" Ben has it.", " Bea has it.", " Ben ran."]
    one, two, three = drawn(9, (4,), (len(TEXTS),), (7,))
    return {
        "4 tokens": (one, " Be", [" Ben.", " Bea."], ["n", "a", "B", "."]),
        "nothing written": (2 * two, "", ours, TEXTS),
        "' Be' written": (two - 3, " Be", ours, TEXTS),
        "' Ben' written": (two, " Ben", ours, TEXTS),
        "' Bea' written": (-two, " Bea", ours, TEXTS),
        "' Ben has it' written": (two, " Ben has it", ours, TEXTS),
        "sentences of one letter": (three, "a", ["aa", "ab", "ba"],
                                    ["a", "b", "aa", "", "ab", "ba", "c"]),
    }  # fmt: skip


def _rests(written, sentences):
    return [each[len(written) :] for each in sentences if each.startswith(written)]


def _masked(allows, outside=-math.inf):
    """An answer from (text, rests, written, sentences) -> whether a token is allowed."""

    def answer(logits, written, sentences, texts):
        rests = _rests(written, sentences)
        allowed = [bool(allows(text, rests, written, sentences)) for text in texts]
        return logits.where(torch.tensor(allowed), outside)

    return answer


def _begins(text, rests, written=None, sentences=None):
    return text and any(rest.startswith(text) for rest in rests)


def _longest(text, rests, texts):
    return any(
        text == max((each for each in texts if rest.startswith(each)), key=len) for rest in rests
    )


_constrain = _masked(_begins)


def _longest_only(logits, written, sentences, texts):
    rests = _rests(written, sentences)
    allowed = [_begins(text, rests) and _longest(text, rests, texts) for text in texts]
    return logits.where(torch.tensor([bool(each) for each in allowed]), -math.inf)


def _allowed(found, logits, written, sentences, texts):
    return _constrain(logits, written, sentences, texts) > -math.inf


constrain = Exercise(
    "logits [V], what is written so far, all sentences of the grammar, the texts of the V tokens "
    "-> [V]: the logits, with minus infinity for each token after which no sentence is possible.",
    right=_constrain,
    cases=_constrain_cases,
    mistakes=[
        (_masked(lambda text, rests, *_: any(rest.startswith(text) for rest in rests)),
         "a token without text is allowed. It leaves what is written as it is, so a loop could "
         "choose it for ever."),
        (_masked(lambda text, rests, *_: text in rests),
         "only tokens that complete a sentence are allowed. A token may also be the beginning of "
         "what is left of it."),
        (_masked(lambda text, rests, written, sentences: _begins(text, sentences)),
         "what is written so far is not considered: these are the tokens with which a sentence "
         "can begin."),
        (_masked(lambda text, rests, *_: _begins(text, rests[:1])),
         "only the first sentence that fits is considered. Several may still be possible."),
        (_masked(lambda text, rests, *_: text and any(text in rest for rest in rests)),
         "a token is allowed that comes later in a sentence. It has to come next: what is left of "
         "the sentence has to start with it."),
        (_masked(lambda text, rests, *_: text and any(
            rest.startswith(text) or text.startswith(rest) for rest in rests)),
         "a token is allowed that goes on after the end of a sentence."),
        (_masked(lambda text, rests, *_: text and any(text.startswith(rest) for rest in rests)),
         "you ask whether the token starts with what is left of a sentence. It is the other way "
         "round: what is left has to start with the token."),
        (_masked(lambda text, rests, *_: text and any(rest[:1] == text[:1] for rest in rests)),
         "only the first character is compared. A token may have more, and all of them have to "
         "fit."),
        (_longest_only,
         "of the tokens that fit, only the longest for each sentence is allowed. Shorter ones lead "
         "to the same sentence, too: allow every token after which one is possible."),
        (_masked(lambda *given: not _begins(*given)),
         "the wrong tokens are masked: those that fit get minus infinity."),
        (_masked(_begins, 0.0),
         "the logits of the other tokens are 0, and the softmax makes e^0 = 1 of that. Set them to "
         "minus infinity."),
        (_masked(_begins, -1e9),
         "the other tokens have a large negative number. That works while the logits are small "
         "compared with it; minus infinity, -math.inf, works always."),
        (lambda *given: _constrain(*given).softmax(-1),
         "these are probabilities. Return logits: temperature and cuts come later."),
        (lambda *given: _constrain(*given) > -math.inf,
         "it holds True and False. Return the logits, with minus infinity where it says False."),
    ],
    properties=[
        (of_each(lambda found, *given: not bool(found.isnan().any())),
         "there is NaN in it: 0 times minus infinity is not a number. Choose between two values "
         "with torch.where or masked_fill."),
        (of_each(lambda found, *given: bool((found[~_allowed(found, *given)] == -math.inf).all())),
         "a token is not masked after which no sentence is possible. What is written, and the "
         "token's text after it, has to be the beginning of a sentence."),
        (of_each(lambda found, *given: bool((found[_allowed(found, *given)] > -math.inf).all())),
         "a token is masked after which a sentence is still possible."),
        (of_each(lambda found, logits, *given: agree(
            found[_allowed(found, logits, *given)], logits[_allowed(found, logits, *given)])),
         "the logits of the tokens that are allowed have changed."),
    ],
    hints=(
        "For one token: write its text behind what is written. Is the result the beginning of one "
        "of the sentences?",
        "`sentence.startswith(written + text)` says it for one sentence. A token without text "
        "passes this test and must not be allowed. `logits.masked_fill(~allowed, -math.inf)` masks "
        "what `allowed`, a tensor of booleans, leaves out.",
    ),
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


def _longest_end(n):
    return range(n - 1, 0, -1)


def _hold_back(sizes=_longest_end, at=lambda text, stop: text.find(stop), after=0, rest=True):
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
        size = _begun(held, stop, _longest_end(len(stop)))
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
    hints=(
        "Keep the text that was not shown yet, and add each piece to it. Is the stop string in it? "
        "If not, which part of it can be shown without regret?",
        "Of all n from 0 to `len(stop) - 1`, take the largest for which the kept text ends with "
        "`stop[:n]`. These n characters wait; all before them are shown.",
    ),
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
