"""How an exercise is checked: on seeded inputs, against the right answer, then known mistakes."""

import copy

import torch


def examine(answer, right, cases, mistakes):
    """Print whether `answer` does what `right` does, and if not, which mistake it probably is.

    answer: the reader's function; right: one that is right; cases: tuples of arguments, alike for
    both; mistakes: {what to say: a function that makes this mistake}, the most specific first. An
    answer that agrees with one of them on all cases is told what stands there. Tensors, lists and
    numbers may differ by 1e-4 of the largest value; everything else must be equal.
    """
    print(_verdict(answer, right, cases, mistakes))


def _verdict(answer, right, cases, mistakes):
    given = []
    for case in cases:
        mine = copy.deepcopy(case)
        try:
            given.append(answer(*mine))
        except Exception as error:  # whatever the reader's code raises is to be told
            text = str(error).strip().split("\n")[0][:200]
            return f"Not yet: for {_inputs(case)} it raised {type(error).__name__}: {text}"
        if given[-1] is None:
            return "Not yet: it returned None. Write the body in place of `...`, with a return."
        if not all(_difference(a, b) is None for a, b in zip(mine, case, strict=True)):
            return "Not yet: it changes its arguments. Make new ones (no `+=`, no `x[i] =`)."
    expected = [right(*copy.deepcopy(case)) for case in cases]
    faults = [_difference(a, b) for a, b in zip(given, expected, strict=True)]
    if not any(faults):
        return f"Right: the same as ours on {len(cases)} inputs."
    for message, mistake in mistakes.items():
        wrong = [mistake(*copy.deepcopy(case)) for case in cases]
        if all(_difference(a, b) is None for a, b in zip(given, wrong, strict=True)):
            return f"Not yet: {message}"
    case, fault = next((c, fault) for c, fault in zip(cases, faults, strict=True) if fault)
    return f"Not yet: for {_inputs(case)} {fault}"


def _difference(found, expected):
    """None where two results agree, else a few words on the first place where they do not."""
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor):
            return f"the result is of type {type(found).__name__}, expected a tensor."
        if found.shape != expected.shape:
            return f"the shape is {list(found.shape)}, expected {list(expected.shape)}."
        if found.dtype != expected.dtype:
            return f"the dtype is {found.dtype}, expected {expected.dtype}."
        return _first_far(found.detach(), expected.detach())
    if isinstance(expected, bool | str | bytes | type(None)):
        same = type(found) is type(expected) and found == expected
        return None if same else f"the result is {found!r:.80}, expected {expected!r:.80}."
    if isinstance(expected, int | float):
        try:
            close = bool(abs(found - expected) <= 1e-4 * max(abs(expected), 1e-9))
        except (TypeError, ValueError, RuntimeError):
            return f"the result is of type {type(found).__name__}, expected a number."
        return None if close else f"the result is {found}, expected {expected}."
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple):
            return f"the result is of type {type(found).__name__}, expected a list."
        if len(found) != len(expected):
            return f"the result has {len(found)} entries, expected {len(expected)}."
        pairs = enumerate(zip(found, expected, strict=True))
        faults = ((i, _difference(a, b)) for i, (a, b) in pairs)
        return next((f"entry {i}: {fault}" for i, fault in faults if fault), None)
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return f"the result is of type {type(found).__name__}, expected a dict."
        odd = [*(expected.keys() - found.keys()), *(found.keys() - expected.keys())]
        if odd:
            return f"{odd[0]!r} is a key of only one of the two, your result and the expected one."
        faults = ((key, _difference(found[key], expected[key])) for key in expected)
        return next((f"{key!r}: {fault}" for key, fault in faults if fault), None)
    return None if found == expected else f"the result is {found!r:.80}, expected {expected!r:.80}."


def _first_far(found, expected):
    if not (expected.is_floating_point() or expected.is_complex()):
        far = found != expected
    else:
        scale = expected[expected.isfinite()].abs().max() if expected.isfinite().any() else 1.0
        near = (found - expected).abs() <= 1e-4 * scale
        both_nan = found.isnan() & expected.isnan()
        far = ~(near | both_nan | (found == expected))  # equal infinities are near
    if not far.any():
        return None
    place = [int(i) for i in far.nonzero()[0]]
    values = (f"{x[tuple(place)].item():.4g}" for x in (found, expected))
    return "at {} the value is {}, expected {}.".format(place, *values)


def _inputs(case):
    """The arguments of a case in few words: shapes of tensors, values of the rest."""
    words = [
        f"a tensor {list(x.shape)}" if isinstance(x, torch.Tensor) else f"{x!r:.40}" for x in case
    ]
    return ", ".join(words)
