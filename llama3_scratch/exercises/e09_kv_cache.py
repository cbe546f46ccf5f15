"""The exercises of notebook 09: append, a common prefix, a draft, a window, padding on the left."""

import math

import torch

from llama3_scratch.exercises.frame import Exercise, desk, drawn, of_each
from llama3_scratch.model import causal_mask

# --- Append ---------------------------------------------------------------------------------------


def _append_case(seed, front, K, C, H, length, T, dtype=torch.float32):
    """A buffer whose unused end holds other numbers, as after a cache was shortened."""
    buffer, new = drawn(seed, (*front, K, C, H), (*front, T, K, H))
    return buffer.to(dtype), length, new.to(dtype)


def _append_cases():
    return {
        "2 tokens in a buffer [3, 5, 2] of length 0": _append_case(1, (), 3, 5, 2, 0, 2),
        "1 token in a buffer [2, 7, 4] of length 3": _append_case(2, (), 2, 7, 4, 3, 1),
        "4 tokens that fill a buffer [3, 6, 2]": _append_case(3, (), 3, 6, 2, 2, 4),
        "one key/value head, [1, 8, 2]": _append_case(4, (), 1, 8, 2, 5, 2),
        "leading dimensions, [5, 2, K, C, H]": _append_case(5, (5, 2), 3, 7, 4, 4, 2),
        "bfloat16": _append_case(6, (), 2, 9, 6, 5, 3, torch.bfloat16),
    }


def _appended(answer, buffer, length, new):
    """-> the result, the buffer afterwards, and whether the two share their memory."""
    mine = buffer.clone()
    result = answer(mine, length, new)
    if not isinstance(result, torch.Tensor):
        return result
    shared = result.untyped_storage().data_ptr() == mine.untyped_storage().data_ptr()
    return result, mine, shared


def _store(start=lambda length: length, stop=None, turn=None, result=None):
    """An answer that is wrong in where it writes, in what it writes, or in what it returns."""

    def answer(buffer, length, new):
        T = new.shape[-3]
        first = start(length)
        rows = new.transpose(-3, -2) if turn is None else turn(new)
        buffer[..., first : first + T, :] = rows
        shown = buffer[..., : length + T if stop is None else stop(length, T), :]
        return shown.transpose(-3, -2) if result is None else result(shown, new)

    return answer


def _reshaped(new):
    T, K, H = new.shape[-3:]
    return new.reshape(*new.shape[:-3], K, T, H)


def _glued(buffer, length, new):
    return torch.cat([buffer[..., :length, :].transpose(-3, -2), new], -3)


append = Exercise(
    "A buffer [..., K, C, H] of which `length` positions are filled, and T new tokens' keys or "
    "values [..., T, K, H] -> a view [..., S, K, H] of all S = length + T, stored in the buffer.",
    right=_store(),
    cases=_append_cases,
    run=_appended,
    mistakes=[
        (_glued,
         "the result is right, but nothing was stored: the next call finds the buffer without "
         "these tokens. Write them into it, at the first free position."),
        (_store(result=lambda shown, new: shown.transpose(-3, -2).clone()),
         "the result is a copy, made anew for every token. Return a view of the buffer: a slice, "
         "with two dimensions exchanged."),
        (_store(result=lambda shown, new: shown),
         "the result is [..., K, S, H], as it lies in the buffer. Exchange its two dimensions "
         "again: attention wants the positions before the heads."),
        (_store(turn=_reshaped),
         "the shapes fit and the numbers are mixed up: `view` and `reshape` keep the order in "
         "memory, token by token. Exchange the dimensions with `transpose`."),
        (_store(start=lambda length: 0),
         "the new tokens overwrite the first ones. The first free position is `length`."),
        (_store(start=lambda length: max(length - 1, 0)),
         "the last token of the buffer is overwritten. Positions count from 0, so `length` tokens "
         "fill the positions up to length - 1, and position `length` is free."),
        (_store(stop=lambda length, T: None),
         "the result has all C positions of the buffer. Those after the new tokens hold nothing, "
         "or what an earlier text left there."),
        (_store(stop=lambda length, T: length),
         "the new tokens are stored, but the result ends before them. A token attends to itself, "
         "too."),
        (lambda buffer, length, new: new,
         "the new tokens come back alone, and nothing was stored. Return everything so far, S = "
         "length + T positions."),
        (_store(result=lambda shown, new: shown[..., -new.shape[-3]:, :].transpose(-3, -2)),
         "the new tokens come back alone, out of the buffer. Return everything so far, S = length "
         "+ T positions."),
    ],
    properties=[
        (of_each(lambda found, buffer, length, new: found[0].shape[-3] == length + new.shape[-3]),
         "the result should have S = length + T positions: those that were filled, and the new "
         "ones."),
        (of_each(lambda found, buffer, length, new: torch.equal(
            found[1][..., :length, :], buffer[..., :length, :])),
         "a position that was filled before has changed in the buffer. Write only to the T "
         "positions from `length` on."),
        (of_each(lambda found, buffer, length, new: torch.equal(
            found[1][..., length : length + new.shape[-3], :], new.transpose(-3, -2))),
         "the T positions from `length` on do not hold the new tokens: [T, K, H] comes in, and "
         "the buffer is [K, C, H]."),
        (of_each(lambda found, *case: found[2]),
         "the result does not share the buffer's memory, so it is a copy, made anew for every "
         "token. Return a view: a slice, with two dimensions exchanged."),
    ],
    hints=(
        "`new` is [T, K, H] and the buffer is [K, C, H]. Which slice of the buffer has room for T "
        "tokens, and which two dimensions of `new` must change places before it fits?",
        "Assigning to a slice, `buffer[..., a:b, :] = ...`, stores; a slice by itself is a view "
        "and copies nothing, and so is its `transpose(-3, -2)`. The three dots stand for any "
        "leading dimensions, so count T from the end: `new.shape[-3]`.",
    ),
    dtype=True,
)  # fmt: skip


# --- A common prefix ------------------------------------------------------------------------------


def _common(cached, ids):
    n = 0
    while n < min(len(cached), len(ids)) and cached[n] == ids[n]:
        n += 1
    return n


def _common_prefix(cached, ids):
    return min(_common(cached, ids), len(ids) - 1)


common_prefix = Exercise(
    "The ids whose keys and values are in the cache, the ids of a prompt -> how many positions of "
    "the cache can serve the prompt; at least one token of the prompt has to be computed.",
    right=_common_prefix,
    cases=lambda: [
        ([7, 4, 9], [7, 4, 8, 5]),
        ([1, 5, 6, 2], [1, 5, 6, 2, 8, 8]),
        ([1, 5, 6, 2], [1, 5, 6, 2]),
        ([1, 5, 6, 2, 3, 9], [1, 5, 6]),
        ([1, 3, 6, 2, 7], [1, 5, 6, 2, 7]),
        ([], [1, 5]),
        ([4, 5, 6], [1, 4, 5, 6]),
        ([8], [8]),
    ],
    mistakes=[
        (_common,
         "a prompt that is in the cache to its last token leaves nothing to compute. But the next "
         "token is read from the logits of the last one, and the cache holds no logits: compute "
         "at least that one."),
        (lambda cached, ids: min(sum(a == b for a, b in zip(cached, ids, strict=False)),
                                 len(ids) - 1),
         "you count all positions at which the ids agree. After the first one that differs nothing "
         "can be used, even where the ids agree again: what those tokens read was another text."),
        (lambda cached, ids: min(len(set(cached) & set(ids)), len(ids) - 1),
         "you count ids that occur in both. They have to agree position by position, from the "
         "first one on."),
        (lambda cached, ids: min(_common(cached, ids) + 1, len(ids) - 1),
         "one too many: the position at which the ids differ cannot be used."),
        (lambda cached, ids: max(_common_prefix(cached, ids) - 1, 0),
         "one too few: every position before the first difference can be used."),
        (lambda cached, ids: len(ids) - _common_prefix(cached, ids),
         "this is the number of tokens to compute. Return the number of those that are not."),
        (lambda cached, ids: min(len(cached), len(ids) - 1),
         "you take the whole cache, whatever it holds. Compare the ids."),
        (lambda cached, ids: ids[: _common_prefix(cached, ids)],
         "these are the ids themselves. Return how many there are."),
    ],
    properties=[
        (of_each(lambda found, cached, ids: 0 <= found < len(ids)),
         "the number should be 0 or more, and leave at least one token of the prompt to compute."),
        (of_each(lambda found, cached, ids: cached[:found] == ids[:found]),
         "the two lists are not equal as far as that."),
    ],
    hints=(
        "Go through both lists side by side and stop where they differ. They may have different "
        "lengths, and one may be empty.",
        "Then think of a prompt that is asked a second time, word for word. Its keys and values "
        "are all there. What is not?",
    ),
)  # fmt: skip


# --- A draft --------------------------------------------------------------------------------------


def _verify_case(seed, best, draft, length):
    """Logits [n+1, V] whose likeliest tokens are these, in a cache of this length."""
    (logits,) = drawn(seed, (len(best), 11))
    logits[torch.arange(len(best)), torch.tensor(best)] = 5.0
    return logits, draft, length


def _verify_cases():
    return {
        "a draft [4, 7, 2] whose first token is right": _verify_case(1, [4, 9, 2, 5], [4, 7, 2], 9),
        "a draft of 4, all right": _verify_case(2, [3, 8, 1, 6, 10], [3, 8, 1, 6], 30),
        "a draft of 3, none right": _verify_case(3, [6, 2, 7, 7], [5, 2, 7], 12),
        "no draft": _verify_case(4, [8], [], 17),
        "a draft of 5, the third one wrong": _verify_case(
            5, [1, 2, 9, 4, 5, 0], [1, 2, 3, 4, 5], 21),
        "a draft of 1, right": _verify_case(6, [0, 9], [0], 6),
        "a draft [3, 3, 3]": _verify_case(7, [3, 3, 6, 3], [3, 3, 3], 8),
        "a draft that says each token a place too late": _verify_case(
            8, [2, 4, 6, 8], [9, 2, 4], 15),
        "a draft that says each token a place too early": _verify_case(
            9, [7, 4, 6, 8], [4, 6, 8], 13),
    }  # fmt: skip


def _best(logits):
    return logits.argmax(-1).tolist()


def _accepted(best, draft):
    return next((i for i, token in enumerate(draft) if token != best[i]), len(draft))


def _verify(logits, draft, length, kept=_accepted, ids=None, back=0):
    """kept: how many of the draft; ids: what is returned; back: an error in the length."""
    best = _best(logits)
    k = kept(best, draft)
    new = best[: k + 1] if ids is None else ids(best, draft, k)
    return new, length - (len(draft) - k) + back


def _matches(best, draft):
    return sum(a == b for a, b in zip(best, draft, strict=False))


def _too_late(best, draft):
    return next((i for i, token in enumerate(draft) if token != best[i + 1]), len(draft))


def _too_early(best, draft):
    return next((i for i, token in enumerate(draft[1:]) if token != best[i]), len(draft))


def _pairs(found):
    return [int(token) for token in found[0]], found[1]


verify = Exercise(
    "Logits [n+1, V] at the text's last token and at the n tokens of a draft, the draft (a list), "
    "the cache's length with the whole draft in it -> the ids by which the text grows (a list: "
    "the accepted ones, then the model's own), and the length to which the cache goes back.",
    right=_verify,
    cases=_verify_cases,
    run=lambda answer, *case: (
        tuple(result) if isinstance(result := answer(*case), list | tuple) else result),
    mistakes=[
        (lambda logits, draft, length: _verify(logits, draft, length)[0],
         "the ids are right. The second result is missing: the length to which the cache goes "
         "back."),
        (lambda logits, draft, length: (_verify(logits, draft, length)[0], length),
         "the ids are right, but the cache still holds the rejected tokens of the draft, and the "
         "next token would attend to them. Take them off its length."),
        (lambda logits, draft, length: (
            _verify(logits, draft, length)[0], length - len(draft)),
         "the ids are right, but the cache loses the whole draft. The accepted tokens may stay: "
         "they are part of the text now."),
        (lambda *case: _verify(*case, back=1),
         "the ids are right; the cache's length is one too large. The model's own token, the last "
         "of the new ids, has not been through the model yet."),
        (lambda *case: _verify(*case, back=-1),
         "the ids are right; the cache's length is one too small. Only the rejected tokens have "
         "to go: the draft's length minus the number of accepted ones."),
        (lambda *case: _verify(*case, kept=_matches),
         "you count every token of the draft that agrees. After the first wrong one the model has "
         "read another text than its own, so what agrees there is worth nothing: stop."),
        (lambda *case: _verify(*case, ids=lambda best, draft, k: draft[:k]),
         "the model's own token is missing. The row after the last accepted token predicts one "
         "more, whether the draft went on or was wrong there."),
        (lambda *case: _verify(*case, ids=lambda best, draft, k: [*draft[: k + 1], *best[
            len(draft) : k + 1]]),
         "where the draft is wrong, you take the draft's token. Take the model's: the likeliest of "
         "that row."),
        (lambda *case: _verify(*case, ids=lambda best, draft, k: best),
         "all n + 1 likeliest tokens are taken, whatever the draft says. Those after the first "
         "difference were computed behind a wrong token."),
        (lambda *case: _verify(*case, ids=lambda best, draft, k: [*draft, best[-1]]),
         "the whole draft is accepted unseen. Compare it with the model's tokens."),
        (lambda *case: _verify(*case, ids=lambda best, draft, k: [*draft[:k], best[-1]]),
         "the model's own token is always read from the last row. It has to come from the row "
         "after the last accepted token."),
        (lambda *case: _verify(*case, kept=_too_late),
         "off by one: you compare each token of the draft with what the model says after it. Row 0 "
         "of the logits stands at the text's last token and predicts the draft's first one."),
        (lambda *case: _verify(*case, kept=_too_early),
         "off by one: you compare each token of the draft with what the model says two places "
         "before it. Row 0 of the logits predicts the draft's first token."),
        (lambda logits, draft, length: (
            lambda k: (_best(logits)[k : k + 1], length - len(draft) + k))(
            _accepted(_best(logits), draft)),
         "only the model's own token is returned. The text grows by the accepted tokens, too."),
    ],
    properties=[
        (of_each(lambda found, logits, draft, length: len(_pairs(found)[0]) >= 1),
         "each pass gives at least one token, the model's own, even if all of the draft is "
         "rejected."),
        (of_each(lambda found, logits, draft, length: (
            _pairs(found)[0] == _best(logits)[: len(found[0])])),
         "the text is not the greedy text: each new id should be the likeliest token of its row, "
         "row 0 first."),
        (of_each(lambda found, logits, draft, length: (
            len(found[0]) == _accepted(_best(logits), draft) + 1)),
         "the text grows by a wrong number of tokens: those of the draft before its first wrong "
         "one, and one more."),
        (of_each(lambda found, logits, draft, length: (
            _pairs(found)[1] == length - len(draft) + _accepted(_best(logits), draft))),
         "the cache's length is wrong: it should keep the accepted tokens of the draft and lose "
         "the rejected ones. The model's own token is not in it yet."),
    ],
    hints=(
        "Row i of the logits predicts the draft's token i: row 0 stands at the token before the "
        "draft. Which row predicts the token after the last accepted one?",
        "If k tokens are accepted, the text grows by k + 1 and the cache loses n - k. Test it on "
        "an empty draft: what is left is plain decoding.",
    ),
)  # fmt: skip


# --- A window, and the first tokens ---------------------------------------------------------------


def _back(start, stop):
    return torch.arange(start, stop)[:, None] - torch.arange(stop)


def _masked(seen):
    """A mask from (distance back, the keys' positions, window, sinks) -> whether a key is seen."""

    def mask(start, stop, window, sinks):
        shown = seen(_back(start, stop), torch.arange(stop), window, sinks)
        return torch.where(shown, 0.0, -math.inf)

    return mask


def _window_mask(start, stop, window, sinks):
    causal = causal_mask(torch.arange(start, stop), stop)
    far = (_back(start, stop) >= window) & (torch.arange(stop) >= sinks)
    return causal.masked_fill(far, -math.inf)


def _seen_by(position, window, sinks):
    return {*range(max(0, position - window + 1), position + 1), *range(min(sinks, position + 1))}


def _rows_see(found, start, stop, window, sinks):
    seen = [int(n) for n in (found == 0).sum(-1)]
    return seen == [len(_seen_by(position, window, sinks)) for position in range(start, stop)]


window_mask = Exercise(
    "start, stop, window, sinks -> [T, S]: 0 where a query may attend, minus infinity elsewhere. "
    "The T queries are at positions start to stop - 1, the S = stop keys at 0 to stop - 1. A query "
    "sees itself, the window - 1 tokens before it, and the first `sinks` tokens.",
    right=_window_mask,
    cases=lambda: [
        (0, 5, 2, 1), (1, 4, 2, 0), (0, 7, 3, 2), (4, 9, 3, 1), (7, 8, 4, 2), (2, 6, 9, 3),
        (5, 11, 1, 4), (0, 3, 1, 5), (0, 1, 1, 0),
    ],
    mistakes=[
        (_masked(lambda back, s, window, sinks: (back >= 0) & (back < window) | (s < sinks)),
         "the first tokens see the future: where `sinks` is 2, token 0 sees token 1. The first "
         "`sinks` tokens are open to those that come after them."),
        (_masked(lambda back, s, window, sinks: (back >= 0) & (back < window)),
         "the window is right, and the first `sinks` tokens are missing: they stay visible "
         "however far back they are."),
        (_masked(lambda back, s, window, sinks: (back >= 0) & ((back < window) | (s <= sinks))),
         "one token too many is kept at the beginning: `sinks` tokens are those at positions 0 to "
         "sinks - 1."),
        (_masked(lambda back, s, window, sinks: (back >= 0) & (
            (back < window - sinks) | (s < sinks))),
         "the window is smaller by `sinks`. Here it keeps its size, and the sinks come on top."),
        (_masked(lambda back, s, window, sinks: (back >= 0) & ((back <= window) | (s < sinks))),
         "there is one key too many: the window includes the query itself, so with a window of 3 "
         "the keys at distances 0, 1 and 2 are seen."),
        (_masked(lambda back, s, window, sinks: (back >= 0) & ((back < window - 1) | (s < sinks))),
         "there is one key too few: with a window of 3 the keys at distances 0, 1 and 2 are seen."),
        (_masked(lambda back, s, window, sinks: (back > 0) & ((back < window) | (s < sinks))),
         "a query does not see itself. Distance 0 belongs to the window."),
        (_masked(lambda back, s, window, sinks: (back > 0) & ((back <= window) | (s < sinks))),
         "a query does not see itself, and the window begins before it. Distance 0 belongs to the "
         "window."),
        (_masked(lambda back, s, window, sinks: (back.abs() < window) | (s < sinks) & (back >= 0)),
         "the future is open: keys after the query are seen too. The window only reaches back."),
        (_masked(lambda back, s, window, sinks: (back < window) | (s < sinks)),
         "the causal part is missing: every key that is not too old is seen, and so is the "
         "future."),
        (_masked(lambda back, s, window, sinks: back >= 0),
         "this is the causal mask without a window: old keys are still seen."),
        (_masked(lambda back, s, window, sinks: (back >= 0) & (back < window) & (s < sinks)),
         "a key has to be near *and* among the first. One of the two is enough: or, in place of "
         "and."),
        (_masked(lambda back, s, window, sinks: ~((back >= 0) & ((back < window) | (s < sinks)))),
         "this hides what it should show, and shows what it should hide."),
        (lambda start, *rest: _window_mask(0, *rest)[: rest[0] - start],
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
        (of_each(lambda found, start, stop, window, sinks: bool(
            (found[_back(start, stop) < 0] != 0).all())),
         "the future is open: a query sees a key whose position is larger than its own."),
        (of_each(lambda found, start, stop, window, sinks: bool(
            (found.diagonal(start) == 0).all())),
         "a query does not see itself: in row t, where the query is at position start + t, the key "
         "at that position is hidden."),
        (of_each(_rows_see),
         "a query sees too many or too few keys: it should see `window` of them, itself among "
         "them, and the first `sinks`, as far as these are not in its future."),
    ],
    hints=(
        "Make two things first: the distances [T, S], the query's position minus the key's, and "
        "the positions of the keys. Which of them tells the future, which the window, which the "
        "sinks?",
        "A key is seen if it is not in the future, and if it is near or among the first. Mind the "
        "brackets: in Python `&` binds more tightly than `|`, and both more tightly than `<`.",
    ),
)  # fmt: skip


# --- Padding on the left --------------------------------------------------------------------------


def _is_padding(lengths, T):
    return torch.arange(T) < T - torch.tensor(lengths)[:, None]  # [B, T]


def _padded_mask(lengths, T):
    """Every query sees itself; of the others those of the past that are no padding."""
    hidden = _is_padding(lengths, T)[:, None, :] | torch.ones(T, T).triu(1).bool()
    return torch.where(hidden & ~torch.eye(T).bool(), -math.inf, 0.0)


def _padded(hidden):
    """A mask from (padding [B, T], the future [T, T]) -> which keys are hidden, [B, T, T]."""

    def mask(lengths, T):
        future = torch.ones(T, T).triu(1).bool()
        return torch.where(hidden(_is_padding(lengths, T), future), -math.inf, 0.0)

    return mask


def _any_padding_row(answer, lengths, T):
    """What a padding token attends to is all the same, as long as it is something."""
    found = answer(lengths, T)
    if not (isinstance(found, torch.Tensor) and found.is_floating_point()):
        return found
    if found.shape != (len(lengths), T, T):
        return found
    free = _is_padding(lengths, T) & (found != -math.inf).any(-1) & ~found.isnan().any(-1)
    return torch.where(free[..., None], _padded_mask(lengths, T), found)


def _among_prompts(lengths, T, keys):
    """[B, T, T]: queries of the prompts with these keys [B, T], none in the future."""
    queries = ~_is_padding(lengths, T)
    return queries[:, :, None] & keys[:, None, :] & torch.ones(T, T).tril().bool()


padded_mask = Exercise(
    "The lengths of B prompts (a list), all filled up on the left to T tokens -> [B, T, T]: 0 "
    "where a query may attend, minus infinity on padding and on the future; no row is all minus "
    "infinity.",
    right=_padded_mask,
    cases=lambda: [([3, 2], 3), ([5, 1, 4], 5), ([4, 4], 4), ([2], 6), ([7, 3, 1, 6, 2], 7)],
    run=_any_padding_row,
    mistakes=[
        (_padded(lambda padding, future: padding[:, None, :] | future),
         "the rows of padding are minus infinity from end to end. Their softmax is 0/0, NaN, and "
         "in the next layer their keys are NaN, which no mask hides. Let each of them see "
         "something, for instance itself."),
        (_padded(lambda padding, future: padding.flip(-1)[:, None, :] | future),
         "the padding is hidden on the right. Here it stands on the left: a prompt of n tokens "
         "fills the last n of the T places."),
        (_padded(lambda padding, future: ~padding[:, None, :] | future),
         "the prompt is hidden and the padding is shown."),
        (_padded(lambda padding, future: (padding[:, None, :] | future).mT),
         "rows and columns are exchanged: a row for each query, a column for each key."),
        (_padded(lambda padding, future: padding[..., None] | future),
         "the queries that are padding are hidden, rows of the mask. It is the keys, its columns, "
         "that nobody should attend to."),
        (_padded(lambda padding, future: padding[:, None, :].expand(-1, len(future), -1)),
         "the causal part is missing: every token of a prompt sees the future."),
        (_padded(lambda padding, future: future.expand(len(padding), -1, -1)),
         "this is the causal mask: the padding is seen. Hide those columns, in each prompt its "
         "own."),
        (lambda lengths, T: _padded_mask(lengths, T) == 0,
         "it holds True where a query may attend. `attend` adds the mask to the scores: 0 there, "
         "and minus infinity elsewhere."),
        (lambda lengths, T: (_padded_mask(lengths, T) == 0).float(),
         "it holds ones and zeros, for multiplying. `attend` adds the mask to the scores: 0 where "
         "a query may attend, minus infinity elsewhere."),
    ],
    properties=[
        (of_each(lambda found, *case: bool(((found == 0) | (found == -math.inf)).all())),
         "it holds other numbers than 0 and minus infinity. `attend` adds the mask to the scores: "
         "0 where a query may attend, minus infinity elsewhere."),
        (of_each(lambda found, lengths, T: bool(
            (found[:, torch.ones(T, T).triu(1).bool()] == -math.inf).all())),
         "the future is open: a token of a prompt sees a later one."),
        (of_each(lambda found, lengths, T: bool(
            (found[_among_prompts(lengths, T, _is_padding(lengths, T))] == -math.inf).all())),
         "a token of a prompt sees padding. The padding stands on the left: with n tokens, the "
         "first T - n places are padding."),
        (of_each(lambda found, lengths, T: bool(
            (found[_among_prompts(lengths, T, ~_is_padding(lengths, T))] == 0).all())),
         "a token of a prompt does not see itself, or not all of its own prompt before it. With n "
         "tokens, the prompt fills the last n of the T places."),
    ],
    hints=(
        "Which places of a prompt of n tokens are padding? Compare torch.arange(T) with one number "
        "for each prompt: that gives [B, T], and the mask wants it once for every query.",
        "A key is hidden if it is padding, or if it is in the future. Then look at the rows of the "
        "padding tokens themselves: what does the softmax make of them?",
    ),
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
