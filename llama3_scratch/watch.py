"""Look inside a running function, and read shapes in letters."""

import contextlib
import math
import sys
from collections.abc import Mapping

from llama3_scratch.config import PRESETS, require


@contextlib.contextmanager
def watch(*functions):
    """Record the local variables of the given functions at the end of each of their calls.

    >>> with watch(attend) as seen:
    ...     logits = forward(weights, tokens, config)
    >>> seen[0]["scores"].shape    # of layer 0; seen[1] is layer 1
    >>> seen[0]["return"]          # what the call gave back; seen[0]["def"] is the function's name

    The functions know nothing of it (`sys.setprofile`). Tensors are recorded as they are, not
    copied; dictionaries are left out, so that no layer's weights stay in memory. For functions
    written in Python, in the thread that called `watch`; a call that raised is recorded too.
    """
    names = {}
    for function in functions:
        code = getattr(function, "__code__", None)
        require(code, f"cannot watch {function!r}: it is not a function written in Python.")
        names[code] = function.__name__
    seen, before = [], sys.getprofile()

    def record(frame, event, result):
        if event == "return" and frame.f_code in names:
            kept = {k: v for k, v in frame.f_locals.items() if not isinstance(v, Mapping)}
            seen.append(kept | {"return": result, "def": names[frame.f_code]})

    sys.setprofile(record)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def shape(tensor, letters, config):
    """A tensor's shape, three ways in one line: letters, numbers here, numbers of Llama-3-8B.

    letters: one word a dimension, "T D" or "N*H D"; T and S are read off the tensor. Raises
    `InputError` when the tensor's shape is not what the letters say.

    >>> print(shape(stream, "T D", config))
    [T, D]      here [17, 192]      Llama-3-8B [17, 4096]
    """
    words = letters.split()
    text = {word: n for word, n in zip(words, tensor.shape, strict=False) if word in ("T", "S")}
    readings = []
    for sizes in (config.sizes | text, PRESETS["Llama-3-8B"].sizes | text):
        for letter in letters.replace("*", " ").split():
            require(letter in sizes, f"{letter!r} is no size: expected one of {', '.join(sizes)}.")
        readings.append([math.prod(sizes[letter] for letter in w.split("*")) for w in words])
    here, there = readings
    require(list(tensor.shape) == here, f"the shape is {list(tensor.shape)}, not {words} = {here}.")
    return f"{'[' + ', '.join(words) + ']':11} here {str(here):14} Llama-3-8B {there}"
