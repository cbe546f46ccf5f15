"""The one error that users are meant to see, and helpers for its messages."""

import operator
import re
from pathlib import Path

# Characters that tell a terminal or an editor to do something (tabs and line ends are kept), among
# them those that change the direction of a text; and halves of surrogate pairs.
COMMANDS = re.compile(
    "[\0-\b\v\f\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


class InputError(ValueError):
    """A file, a setting or an argument is not what it should be; the message says what to do."""

    def __init__(self, message):
        super().__init__(visible(message))


def visible(text):
    """Text of a file or a model -> the same for a terminal: control characters as escapes.

    So it can neither clear the screen, nor write into the clipboard, nor hide a part of a name.
    """
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


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


def wholes(name, values):
    """Return values, in any iterable but a text, as a list of ints. Raises `InputError`."""
    try:
        found = list(None if isinstance(values, str | bytes) else values)
    except TypeError:
        raise InputError(f"{name} is {short(values)}: expected ids, for example a list.") from None
    return [whole(f"{name}: a token", value) for value in found]


def real(name, value):
    """Return value as a float if it is a number of any type. Raises `InputError`, as `whole`."""
    try:
        return float([] if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} is {short(value)}: expected a number.") from None


def require_file(path):
    """Raise `InputError` unless path is a file: not a folder, nor a pipe or device, which may wait.

    Raises OSError if there is nothing at that path, or it may not be looked at.
    """
    Path(path).stat()
    require(Path(path).is_file(), f"{path} cannot be read (it is a folder, a pipe or a device).")


def read_file(path, most=10**7):
    """Return the bytes of a file of at most `most` bytes. Raises `InputError`."""
    try:
        require_file(path)
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None
    require(len(content) <= most, f"{path} has more than {most:,} bytes: is it another file?")
    return content


def by_layer(faults, most=12):
    """[(tensor, what is wrong)] -> text, one line per fault; layers with the same fault share one.

    most: the number of lines after which the rest is only counted.
    """
    layers = {}
    for name, fault in faults:
        key = re.sub(r"\blayers\.\d{1,9}\b", "layers.*", name, count=1), fault
        layers.setdefault(key, []).extend(map(int, re.findall(r"\blayers\.(\d{1,9})\b", name)[:1]))
    lines = []
    for (name, fault), numbers in layers.items():
        there = set(numbers)
        firsts = sorted(n for n in there if n - 1 not in there)
        lasts = sorted(n for n in there if n + 1 not in there)
        spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, lasts, strict=True)]
        text = name.replace("layers.*", f"layers.{','.join(spans)}", 1)[:200]
        lines.append(f"  {text if text.isprintable() else short(text)} {fault}")
    more = [f"  and {len(lines) - most} more such lines"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)
