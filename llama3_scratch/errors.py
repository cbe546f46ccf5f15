"""The one error that users are meant to see, and helpers for its messages."""

import operator
import re


class InputError(ValueError):
    """A file, a setting or an argument is not what it should be; the message says what to do."""


def require(condition, message):
    """Raise `InputError` with this message unless the condition holds."""
    if not condition:
        raise InputError(message)


def short(value):
    """Return the beginning of a value that came from a file, for a message."""
    return repr(value)[:99]


def first_line(error):
    """Return the first line of another library's error, for a message."""
    return str(error).strip().split("\n")[0][:200]


def whole(name, value):
    """Return value as an int if it is a whole number of any type (numpy's, a tensor's).

    Raises `InputError`, in which the value is called `name`.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {short(value)}: expected a whole number.") from None


def by_layer(faults, most=12):
    """[(tensor, what is wrong)] -> text, one line per fault; layers with the same fault share one.

    most: the number of lines after which the rest is only counted.
    """
    layers = {}
    for name, fault in faults:
        key = re.sub(r"\blayers\.\d+", "layers.*", name, count=1), fault
        layers.setdefault(key, []).extend(map(int, re.findall(r"\blayers\.(\d+)", name)[:1]))
    lines = []
    for (name, fault), numbers in layers.items():
        there = set(numbers)
        firsts = [n for n in numbers if n - 1 not in there]
        lasts = [n for n in numbers if n + 1 not in there]
        spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True)]
        lines.append(f"  {name.replace('*', ','.join(spans), 1)[:200]} {fault}")
    more = [f"  and {len(lines) - most} more such lines"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)
