"""Look inside a running function, and read shapes in letters."""

import contextlib
import math
import sys
import threading
from collections.abc import Mapping

from tqdm import tqdm

from llama3_scratch.config import PRESETS
from llama3_scratch.errors import require
from llama3_scratch.model import attend

_here = threading.local()  # a thread's open blocks, and the profile function it had before them


@contextlib.contextmanager
def watch(*functions):
    """Record the local variables of the given functions at the end of each of their calls.

    >>> with watch(attend) as seen:
    ...     logits = forward(weights, tokens, config)
    >>> seen[0]["scores"].shape    # of layer 0; seen[1] is layer 1
    >>> seen[0]["return"]          # what the call returned; seen[0]["def"] is the function's name

    The functions need no hooks (`sys.setprofile`). Tensors are recorded without a copy;
    dictionaries are left out, so that no layer's weights stay in memory. It works for functions
    written in Python, in the thread that called `watch`; a call that raised is recorded too.
    Several blocks may be open at one time, and end in any order. Raises `InputError`.
    """
    names, seen = {}, []
    for function in functions:
        code = getattr(function, "__code__", None)
        require(code, f"cannot watch {function!r}: it is not a function written in Python.")
        names[code] = function.__name__
    blocks, key = vars(_here).setdefault("blocks", {}), object()
    if not blocks and sys.getprofile() is not _record:
        _here.before = sys.getprofile()
    blocks[key] = names, seen
    sys.setprofile(_record)
    try:
        yield seen
    finally:
        del blocks[key]
        if sys.getprofile() is _record and not _here.blocks:
            sys.setprofile(_here.before)


def _record(frame, event, result):
    """Record a call in every open block that watches it: the profile function of a thread."""
    blocks = _here.blocks
    if event == "return":
        for names, seen in tuple(blocks.values()):
            if frame.f_code in names:
                kept = {k: v for k, v in frame.f_locals.items() if not isinstance(v, Mapping)}
                seen.append(kept | {"return": result, "def": names[frame.f_code]})
    if not blocks:  # the last one was ended by another thread
        sys.setprofile(_here.before)


@contextlib.contextmanager
def progress(n_layers, attend=attend, after=1.0):
    """While the block runs, show on a terminal how many layers of a forward pass are done.

    Yields `attend` with a count, for every layer calls it once. The bar appears after
    `after` seconds and disappears when the block ends; later calls are not counted.
    """
    with tqdm(total=n_layers, desc="layers", delay=after, leave=False, disable=None) as bar:

        def counted(query, keys, values, mask):
            bar.update()
            return attend(query, keys, values, mask)

        yield counted


def shape(tensor, letters, config):
    """Return a tensor's shape in one line: as letters, in numbers, and in Llama-3-8B's numbers.

    letters: one word per dimension, "T D" or "N*H D"; T and S are taken from the tensor. Raises
    `InputError` if the tensor's shape is not the one that the letters stand for.

    >>> print(shape(stream, "T D", config))
    [T, D]      here [17, 192]      Llama-3-8B [17, 4096]
    """
    words = letters.split()
    text = {word: n for word, n in zip(words, tensor.shape, strict=False) if word in ("T", "S")}
    readings = []
    for sizes in (config.sizes | text, PRESETS["Llama-3-8B"].sizes | text):
        for letter in letters.replace("*", " ").split():
            require(letter in sizes, f"{letter!r} is not one of the sizes {', '.join(sizes)}.")
        readings.append([math.prod(sizes[letter] for letter in w.split("*")) for w in words])
    here, there = readings
    require(list(tensor.shape) == here, f"the shape is {list(tensor.shape)}, not {words} = {here}.")
    return f"{'[' + ', '.join(words) + ']':11} here {str(here):14} Llama-3-8B {there}"
