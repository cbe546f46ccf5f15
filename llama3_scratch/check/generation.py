"""Checkers of notebook 08: which token is chosen, which text is shown, which keys are seen."""

import math
from itertools import accumulate

import torch

from llama3_scratch.check.frame import examine


def min_p(answer):
    """Keep the tokens that are at least `min_p` times as likely as the likeliest.

    logits [V], min_p from 0 to 1 -> [V], probabilities of the kept tokens, 0 for all others.
    """

    def kept(probabilities, smallest):
        left = probabilities * (probabilities >= smallest)
        return left / left.sum()

    def right(logits, share):
        p = logits.softmax(-1)
        return kept(p, share * p.max())

    def not_again(logits, share):
        p = logits.softmax(-1)
        return p * (p >= share * p.max())

    def strict(logits, share):
        p = logits.softmax(-1)
        left = p * (p > share * p.max())
        return left / left.sum()

    def of_logits(logits, share):
        smallest = share * logits.max()
        return logits.masked_fill(logits < smallest, -torch.inf).softmax(-1)

    def logits_to_zero(logits, share):
        p = logits.softmax(-1)
        return (logits * (p >= share * p.max())).softmax(-1)

    def largest_total(logits, share):
        p, order = logits.softmax(-1).sort(descending=True)
        left = p.masked_fill(p.cumsum(-1) - p > share, 0.0)
        return torch.zeros_like(p).scatter(-1, order, left / left.sum())

    def of_the_largest(logits, share):
        p = logits.softmax(-1)
        return p / p.max() * (p >= share * p.max())

    cases = [
        (3 * _drawn(11)(17), 0.1), (2 * _drawn(4)(23) - 3, 0.3), (_drawn(5)(9) + 4, 0.7),
        (2 * _drawn(6)(13), 1.0),
    ]  # fmt: skip
    examine(answer, right, cases, {
        "the threshold is `min_p` itself. It is `min_p` times the largest probability: where the "
        "model is unsure, less is enough to stay.":
            lambda logits, share: kept(logits.softmax(-1), share),
        "the probabilities that are left do not add up to 1: divide by their sum.": not_again,
        "you divide by the largest probability, which helps to compare. What is left in the end "
        "has to add up to 1: divide by its sum.": of_the_largest,
        "a token exactly at the threshold is lost, and with min_p = 1 that is the likeliest "
        "itself: ask for `>=`.": strict,
        "you compare logits. A share of the largest logit means nothing, since all logits may be "
        "moved by the same amount; compare probabilities.": of_logits,
        "you set the logits of the others to 0, and the softmax makes e^0 of that. Set them to "
        "minus infinity, or the probabilities to 0.": logits_to_zero,
        "that is top-p: it looks at the sum of the likelier tokens. Min-p looks at each token "
        "beside the likeliest.": largest_total,
        "nothing is cut away: this is the softmax of all logits.":
            lambda logits, share: logits.softmax(-1),
        "you give logits. Asked are probabilities: one softmax is missing.":
            lambda logits, share: logits.masked_fill(
                logits.softmax(-1) < share * logits.softmax(-1).max(), -torch.inf),
    })  # fmt: skip


def penalise(answer):
    """Make every token that stands in the text already less likely, once.

    logits [V], the text's ids, penalty > 1 -> [V]: positive logits of these ids divided by the
    penalty, negative ones multiplied.
    """

    def changed(change, ids=set):
        def mistake(logits, text, penalty):
            new = logits.clone()
            for token in ids(text):
                new[token] = change(new[token], penalty)
            return new

        return mistake

    def down(logit, penalty):
        return logit / penalty if logit > 0 else logit * penalty

    def on_probabilities(logits, text, penalty):
        p = logits.softmax(-1)
        p[sorted(set(text))] /= penalty
        return (p / p.sum()).log()

    cases = [
        (3 * _drawn(7)(13), [2, 5, 5, 11, 2, 2, 8], 1.3),
        (2 * _drawn(8)(19) - 1, [0, 18, 3, 3, 7], 1.7),
        (_drawn(9)(11) + 0.5, [4, 4, 4, 1, 10, 6], 1.2),
    ]
    examine(answer, changed(down), cases, {
        "you divide the negative logits too. Divided, a negative number comes nearer to 0 and the "
        "token becomes likelier: multiply it.": changed(lambda logit, penalty: logit / penalty),
        "you multiply all of them. That makes positive logits larger: divide those.":
            changed(lambda logit, penalty: logit * penalty),
        "multiplication and division have changed places: a penalty greater than 1 should make "
        "every logit smaller.":
            changed(lambda logit, penalty: logit * penalty if logit > 0 else logit / penalty),
        "a token that occurs three times is changed three times. Here each is changed once, "
        "however often it occurs: go through `set(ids)`.": changed(down, list),
        "you subtract the penalty. In this rule positive logits are divided by it, negative ones "
        "multiplied.": changed(lambda logit, penalty: logit - penalty),
        "negative logits stay as they are. Multiplied by the penalty, they go down like the "
        "others.": changed(lambda logit, penalty: logit / penalty if logit > 0 else logit),
        "you change every token. Only those that stand in the text are meant.":
            lambda logits, text, penalty: changed(down)(logits, range(len(logits)), penalty),
        "you change only the last token of the text.":
            changed(down, lambda text: text[-1:]),
        "you divide the probabilities. The rule is about logits; the softmax comes afterwards.":
            on_probabilities,
    })  # fmt: skip


def window_mask(answer):
    """The mask of a sliding window: every query sees itself and the `window` - 1 keys before it.

    start, stop, window -> [T, S], T = stop - start queries at positions from `start` on, S = stop
    keys from position 0 on: 0 where a query may look, minus infinity elsewhere.
    """

    def masked(seen):
        def mask(start, stop, window):
            query, key = torch.arange(start, stop)[:, None], torch.arange(stop)
            return torch.where(seen(query - key, window), 0.0, -torch.inf)

        return mask

    right = masked(lambda back, window: (back >= 0) & (back < window))

    def rows_from_0(start, stop, window):
        query, key = torch.arange(stop - start)[:, None], torch.arange(stop)
        return torch.where((key <= query) & (key > query - window), 0.0, -torch.inf)

    examine(answer, right, [(0, 7, 3), (4, 9, 3), (7, 8, 4), (2, 6, 9), (5, 11, 1)], {
        "one key too many: the window counts the query itself, so with a window of 3 the keys at "
        "distances 0, 1 and 2 are seen.":
            masked(lambda back, window: (back >= 0) & (back <= window)),
        "a query does not see itself. Distance 0 belongs to the window.":
            masked(lambda back, window: (back > 0) & (back <= window)),
        "the future is open: keys after the query are seen too. The window reaches back only.":
            masked(lambda back, window: back.abs() < window),
        "no causal part: every key is seen that is not too old, the future too.":
            masked(lambda back, window: back < window),
        "that is the causal mask without a window: the old keys are still seen.":
            masked(lambda back, window: back >= 0),
        "that hides what the window should show, and shows what it should hide.":
            masked(lambda back, window: (back < 0) | (back >= window)),
        "the rows begin at position 0. With tokens in the cache the first query stands at "
        "position `start`.": rows_from_0,
        "you give True where a query may look. `attend` adds the mask to the scores: it wants 0 "
        "there, and minus infinity elsewhere.":
            lambda *case: right(*case) == 0,
        "you give True where a query may not look. `attend` adds the mask to the scores: it wants "
        "minus infinity there, and 0 elsewhere.":
            lambda *case: right(*case) != 0,
        "you multiply by minus infinity, and 0 times infinity is no number (nan). Choose with "
        "`torch.where`, or fill with `masked_fill`.":
            lambda *case: (right(*case) != 0) * -torch.inf,
        "you give ones and zeros, for multiplying. `attend` adds the mask to the scores: 0 where a "
        "query may look, minus infinity elsewhere.":
            lambda *case: (right(*case) == 0).float(),
    })  # fmt: skip


def stop_string(answer):
    """Pieces of text as they come, a stop string -> what can be shown after each piece.

    The list ends with the piece that completes the stop string; if none does, it has one more
    entry at its end, with whatever is still held back. Joined: the text before the stop string.
    """

    def begun(text, stop, sizes):
        """How many characters at the end of a text may be the beginning of the stop string."""
        return next((n for n in sizes if n and text.endswith(stop[:n])), 0)

    def held_back(sizes, at=lambda text, stop: text.find(stop), after=0, rest=True):
        def shown(pieces, stop):
            texts, held = [], ""
            for piece in pieces:
                held += piece
                found = at(held, stop)
                if found >= 0:
                    return [*texts, held[: found + after * len(stop)]]
                size = begun(held, stop, sizes(len(stop)))
                cut = len(held) - size
                texts.append(held[:cut])
                held = held[cut:]
            return [*texts, held] if rest else texts

        return shown

    def longest(n):
        return range(n - 1, 0, -1)

    right = held_back(longest)

    def each_alone(pieces, stop):
        texts = []
        for piece in pieces:
            if stop in piece:
                return [*texts, piece[: piece.index(stop)]]
            texts.append(piece)
        return [*texts, ""]

    def never_held(pieces, stop):
        texts = []
        for piece in pieces:
            text = "".join(texts) + piece
            if stop in text:
                return [*texts, text[len("".join(texts)) : text.index(stop)]]
            texts.append(piece)
        return [*texts, ""]

    def always_held(pieces, stop):
        texts, held = [], ""
        for piece in pieces:
            held += piece
            if stop in held:
                return [*texts, held[: held.index(stop)]]
            cut = max(0, len(held) - len(stop) + 1)
            texts.append(held[:cut])
            held = held[cut:]
        return [*texts, held]

    def minus_zero(pieces, stop):
        texts, held = [], ""
        for piece in pieces:
            held += piece
            if stop in held:
                return [*texts, held[: held.index(stop)]]
            size = begun(held, stop, longest(len(stop)))
            texts.append(held[:-size])
            held = held[-size:]
        return [*texts, held]

    def at_the_end(pieces, stop):
        texts = []
        for i in range(len(pieces)):
            text = "".join(pieces[: i + 1])
            if stop in text:
                return [*texts, text[: text.index(stop)]]
            texts.append("")
        return [*texts, "".join(pieces)]

    def ends_with(text, stop):
        return len(text) - len(stop) if text.endswith(stop) else -1

    def given(pieces, stop):
        result = answer(pieces, stop)
        return result if result is None or isinstance(result, str) else list(result)

    cases = [
        (["How are", " you?\n", "User", ":", " fine"], "\nUser:"),
        (["a", "b\nUser: and more", "z"], "\nUser:"),
        (["one\nUs", "e it", "."], "\nUser:"),
        (["it ends with\n", "User"], "\nUser:"),
        (["a#", "#", "#", "!b"], "##!"),
        (["x<", "/s", ">"], "</s>"),
    ]
    examine(given, right, cases, {
        "you look at each piece alone. A stop string may begin in one piece and end in the next.":
            each_alone,
        "what turns out to be the stop string's beginning is on the screen already. Hold back an "
        "end that may become it.": never_held,
        "you hold back more than needed: always as much as the stop string is long. Only an end "
        "of the text that is a beginning of the stop string has to wait.": always_held,
        "with nothing to hold back all is held back: `text[:-0]` is empty, and `text[-0:]` is the "
        "whole text. Cut at `len(text) - n`.": minus_zero,
        "nothing is shown before the stop string has come, or the end. Only an end of the text "
        "that is a beginning of the stop string has to wait.": at_the_end,
        "the stop string itself is shown. The text ends before it.": held_back(longest, after=1),
        "you ask whether the text ends with the stop string. A piece may go on after it.":
            held_back(longest, at=ends_with),
        "what is held back when the pieces run out is lost: it was no stop string, so it belongs "
        "to the text, as one more entry.": held_back(longest, rest=False),
        "you hold back the shortest end that may become the stop string. Several ends may, as `#` "
        "and `##` for `##!`: hold back the longest.": held_back(lambda n: range(1, n)),
        "an entry is missing where nothing can be shown: every piece has its own, an empty text "
        "too.": lambda pieces, stop: [text for text in right(pieces, stop) if text],
        "each entry has the whole text so far. Asked is what each piece adds to it.":
            lambda pieces, stop: list(accumulate(right(pieces, stop))),
        "that is the whole text in one. Asked is a list: what can be shown after each piece.":
            lambda pieces, stop: "".join(pieces).split(stop)[0],
    })  # fmt: skip


def beam_search(answer):
    """The likelier of the two texts that a beam search of width 2 ends with.

    log_probabilities (a function: ids -> [V]), the prompt's ids, n_new -> n_new ids.
    """

    def search(width, score=lambda total, log: total + log, each=None, at=0, best=max, keep=max):
        def found(log_probabilities, prompt, n_new):
            beams = [(0.0, list(prompt))]
            for step in range(n_new):
                grown = []
                for total, ids in beams:
                    logs = log_probabilities(ids)
                    new = [(score(total, float(log)), [*ids, t]) for t, log in enumerate(logs)]
                    new.sort(key=lambda beam: beam[0], reverse=best is max)
                    grown += new[: each if each and step else width]
                grown.sort(key=lambda beam: beam[0], reverse=keep is max)
                beams = grown[:width]
            return beams[min(at, len(beams) - 1)][1][len(prompt) :]

        return found

    right = search(2)
    models = {}
    for name, V, seed in (("A", 6, 32), ("B", 5, 22), ("C", 7, 2), ("D", 6, 16), ("E", 5, 45)):
        # models for which every mistake below shows in one of the cases
        models[f"model {name}"] = (1.5 * _drawn(seed)(V, V, V)).log_softmax(-1)

    def given(function):
        def on_model(name, prompt, n_new):
            def log_probabilities(ids):  # they depend on the last two ids
                return models[name][tuple([0, 0, *ids][-2:])].clone()

            result = function(log_probabilities, prompt, n_new)
            if isinstance(result, torch.Tensor | tuple | list):
                return [getattr(token, "tolist", lambda t=token: t)() for token in result]
            return result

        return on_model

    mistakes = {
        "that is the greedy text: one beam, or two that are always equal. From one text the two "
        "likeliest next tokens make two different beams.": search(1),
        "each beam goes on with its own best token, so one text cannot take both places. Of the "
        "four grown texts, the two best stay, wherever they come from.": search(2, each=1),
        "you rank by the last token alone. A text's score is the sum over all its new tokens.":
            search(2, score=lambda total, log: log),
        "you add probabilities. They are multiplied, or their logarithms added.":
            search(2, score=lambda total, log: total + math.exp(log)),
        "that is the second of the two. Asked is the likelier.": search(2, at=1),
        "you keep the least likely texts: a log-probability nearer to 0 is the better one.":
            search(2, best=min, keep=min),
        "the grown texts are sorted from the least likely on, and you keep the first two: sort "
        "them the other way.": search(2, keep=min),
        "the beam is wider than two.": search(3),
        "you ask for what follows the new ids alone. The prompt stands before them.":
            lambda log_probabilities, prompt, n_new: right(log_probabilities, [], n_new),
        "right, but the prompt stands before it: give the new ids alone.":
            lambda log_probabilities, prompt, n_new: [
                *prompt, *right(log_probabilities, prompt, n_new)],
    }  # fmt: skip
    cases = [
        ("model A", [0, 1], 5), ("model B", [2, 4, 3], 4), ("model C", [6, 6], 6),
        ("model D", [1, 5], 3), ("model E", [0, 0, 2], 7),
    ]  # fmt: skip
    mistakes = {message: given(mistake) for message, mistake in mistakes.items()}
    examine(given(answer), given(right), cases, mistakes)


def _drawn(seed):
    """A function size -> random tensor, the same on every device."""
    generator, device = torch.Generator("cpu").manual_seed(seed), torch.get_default_device()
    return lambda *size: torch.randn(*size, generator=generator, device="cpu").to(device)
