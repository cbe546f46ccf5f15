"""How an exercise is declared and checked: the right answer, the cases, the mistakes.

mask = Exercise(
    "Positions of queries [T] and of keys [S] -> [T, S]: ...",
    right=lambda queries, keys: ...,
    cases=lambda: [(torch.arange(4), torch.arange(4)), ...],
    mistakes=[
        (lambda queries, keys: ...,
         "each token is hidden from itself: ..."),
    ],
)

mask(my_mask)    # prints "Right: ...", "Right, but ..." or "Not yet: ..."
"""

import _thread
import ast
import contextlib
import copy
import inspect
import linecache
import numbers
import signal
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from llama3_scratch.errors import first_line
from llama3_scratch.exercises import workbook

SECONDS = 5.0  # that an answer may take for one case
EMPTY = "it returned None. Write the body in place of `...`, with a return."


def drawn(seed, *shapes):
    """Normal tensors from a seed, the same on every machine, on torch's default device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    return [tensor.to(torch.get_default_device()) for tensor in tensors]


class Case(NamedTuple):
    """One input of an exercise and what is right for it."""

    arguments: tuple
    expected: object


@dataclass(frozen=True)
class Exercise:
    """One exercise: called with the reader's function, it prints a verdict.

    about: what is asked, with shapes; it is the checker's help text.
    right: a right answer. It is a function, as every answer is.
    cases: -> a list of tuples of arguments, or {what a message calls it: tuple}. The smallest one
        comes first: it is the one to redo by hand.
    mistakes: (a function that makes the mistake, what to say), the most specific first. An answer
        that agrees with one of them on every case is told so.
    properties: (function of the results and the cases -> whether a property of a right answer
        holds, what to say if not), checked when no mistake fits, so that two mistakes at once are
        still told one. See `of_each`, and `answer_property` for those that need the answer itself.
    but: (function of the answer's syntax tree -> whether it breaks a restriction of the text, what
        to say), checked when the results are right. See `uses`, `loops`.
    hints: two of them, neither of which gives the answer away.
    run: (answer, *case) -> the result to compare, if that is not `answer(*case)`.
    name, number, key: for example rms_norm, 2.1 and e02_rmsnorm.rms_norm; see `desk`.
    dtype: whether a tensor's dtype is part of the question; else float32 and float64 are as good.
    """

    about: str
    right: Callable
    cases: Callable[[], list[tuple] | dict[str, tuple]]
    mistakes: Sequence[tuple[Callable, str]]
    properties: Sequence[tuple[Callable, str]] = ()
    but: Sequence[tuple[Callable, str]] = ()
    run: Callable = lambda answer, *case: answer(*case)
    hints: Sequence[str] = ()
    dtype: bool = False
    name: str = field(default="", init=False)
    number: str = field(default="", init=False)
    key: str = field(default="", init=False)

    def __post_init__(self):
        object.__setattr__(self, "__doc__", self.about)

    def __call__(self, answer):
        """Print whether the answer is right, and if not, which mistake it probably is.

        In a workbook a right answer is kept.
        """
        verdict = self.verdict(answer)
        print(wrapped(verdict))
        if self.key and verdict.startswith("Right"):
            workbook.keep(self, answer)

    def case(self, i=0):
        """Return Case(arguments, expected) number i; case 0 is small enough to redo by hand."""
        _, arguments = self.named_cases()[i]
        return Case(arguments, self.run(self.right, *copy.deepcopy(arguments)))

    def verdict(self, answer):
        """The reader's function -> what to say of it."""
        if not callable(answer):
            return "Not yet: this is a result. Give the checker the function itself, uncalled."
        given, cases = [], self.named_cases()
        for name, case in cases:
            mine = copy.deepcopy(case)
            try:
                with time_limit(SECONDS):
                    result = self.run(answer, *mine)
            except TimeoutError:
                return (
                    f"Not yet: for {name} it was still running after {SECONDS:g} seconds. Does a "
                    "loop change what its condition tests?"
                )
            except Exception as error:  # whatever the reader's code raises is to be told
                text = f"Not yet: for {name} it raised {type(error).__name__}: {first_line(error)}"
                return text + _line_of(answer, error)
            if result is None:
                return f"Not yet: {_why_none(answer, name)}"
            if not all(map(agree, mine, case)):
                return "Not yet: it changes its arguments. Make new ones (no `+=`, no `x[i] =`)."
            given.append(_taken(result))
        expected = self.results(self.right, cases)
        faults = [difference(a, b, self.dtype) for a, b in zip(given, expected, strict=True)]
        if not any(faults):
            broken = self._broken_restriction(answer)
            return broken or f"Right: the same as ours on {len(cases)} inputs."
        for mistake, message in self.mistakes:
            wrong = self.results(mistake, cases)
            if all(difference(a, b, self.dtype) is None for a, b in zip(given, wrong, strict=True)):
                return f"Not yet: {message}"
        if message := self._broken_property(answer, given, expected, cases, faults):
            return f"Not yet: {message}"
        pairs = zip(cases, faults, strict=True)
        return next(f"Not yet: for {name} {fault}" for (name, _), fault in pairs if fault)

    def named_cases(self):
        """[(what a message calls it, arguments)]"""
        cases = self.cases()
        named = isinstance(cases, dict)
        return list(cases.items()) if named else [(described(case), case) for case in cases]

    def broken(self, answer, given, cases):
        """The message of the first property that an answer lacks, None if it has them all."""
        arguments = [case for _, case in cases]
        for holds, message in self.properties:
            try:
                with time_limit(SECONDS):
                    if not holds(answer, given, copy.deepcopy(arguments)):
                        return message
            except Exception:  # a result of another kind; the comparison tells which
                continue
        return None

    def results(self, function, cases):
        """The results of an answer on [(name, arguments)]."""
        return [_taken(self.run(function, *copy.deepcopy(case))) for _, case in cases]

    def _broken_restriction(self, answer):
        tree = _tree(answer)
        for breaks, message in self.but:
            if tree is not None and breaks(tree):
                return f"Right, but {message}"
        return None

    def _broken_property(self, answer, given, expected, cases, faults):
        with_nan = [_has_nan(a) and not _has_nan(b) for a, b in zip(given, expected, strict=True)]
        if any(with_nan):
            name, _ = cases[with_nan.index(True)]
            return f"for {name} there is NaN in the result: 0/0, or 0 times infinity."
        shaped = [_same_form(a, b) for a, b in zip(given, expected, strict=True)]
        if not all(shaped):
            return None  # the form is the first thing to tell
        if broken := self.broken(answer, given, cases):
            return broken
        if len(faults) > 1 and not faults[0] and all(faults[1:]):
            return (
                f"right for {cases[0][0]}, wrong for all other inputs. Is a number typed in that "
                "belongs to this one?"
            )
        return None


def desk(module):
    """A module's names -> its functions `case`, `hint`, `lent`, `progress` and `status`.

    Its exercises get their numbers (7.1, 7.2, ...) in the order in which the module defines them.
    """
    chapter = module["__name__"].rpartition(".")[2]
    exercises = {name: each for name, each in module.items() if isinstance(each, Exercise)}
    for i, (name, exercise) in enumerate(exercises.items(), start=1):
        object.__setattr__(exercise, "name", name)
        object.__setattr__(exercise, "key", f"{chapter}.{name}")
        object.__setattr__(exercise, "number", f"{int(chapter[1:3])}.{i}")

    def case(name, i=0):
        """Return an exercise's input number i and the right result: Case(arguments, expected)."""
        return exercises[name].case(i)

    def hint(name, i=1):
        """Print hint number i of an exercise: 1 or 2."""
        print(wrapped(exercises[name].hints[i - 1]))

    def status():
        """Print this notebook's exercises, and which of them are passed in this workbook."""
        workbook.print_status(exercises.values())

    return case, hint, workbook.lent, workbook.progress, status


# --- Properties and restrictions ------------------------------------------------------------------


def of_each(holds):
    """A property of every single result: (result, *case) -> whether it holds."""
    return lambda answer, given, cases: all(
        holds(result, *case) for result, case in zip(given, cases, strict=True)
    )


def answer_property(holds):
    """A property of the function itself: (answer, *case) -> whether it holds, for every case."""
    return lambda answer, given, cases: all(holds(answer, *case) for case in cases)


def uses(*names):
    """A restriction: whether a syntax tree uses one of these names, methods or functions."""

    def used(tree):
        found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        return bool(found & set(names))

    return used


def loops(tree):
    """A restriction: whether a syntax tree has a loop or a comprehension."""
    kinds = ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp
    return any(isinstance(node, kinds) for node in ast.walk(tree))


# --- Comparison -----------------------------------------------------------------------------------


def agree(found, expected):
    """Whether two results agree, as `difference` compares them."""
    return difference(found, expected) is None


def difference(found, expected, dtype=False):
    """None where two results agree, else a few words on the first place where they do not.

    Floats may differ by 1e-4 of a tensor's largest value, by 1e-6 of a single number. Whole
    numbers, zeros, infinities, text and shapes must be equal; dtypes too if `dtype` is true, else
    only their kind. NumPy's arrays and numbers are taken as torch's and Python's.
    """
    found = _taken(found)
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(found, expected, dtype)
    if isinstance(found, torch.Tensor) and (found.dim() == 0 or isinstance(expected, list | tuple)):
        found = found.tolist()
    if isinstance(found, range):
        found = list(found)
    kind = type(found).__name__
    if isinstance(expected, bool | str | bytes | type(None)):
        same = type(found) is type(expected) and found == expected
        return None if same else f"the result is {shown(found)}, expected {shown(expected)}."
    if isinstance(expected, numbers.Number):
        if not isinstance(found, numbers.Number) or isinstance(found, bool):
            return f"the result is of type {kind}, expected a number."
        exact = isinstance(expected, int) or expected == 0
        near = found == expected or not exact and abs(found - expected) <= 1e-6 * abs(expected)
        both_nan = found != found and expected != expected
        return None if near or both_nan else f"the result is {found}, expected {expected}."
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple):
            return f"the result is of type {kind}, expected a list."
        if len(found) != len(expected):
            return f"the result has {len(found)} entries, expected {len(expected)}."
        pairs = enumerate(zip(found, expected, strict=True))
        faults = ((i, difference(a, b, dtype)) for i, (a, b) in pairs)
        return next((f"entry {i}: {fault}" for i, fault in faults if fault), None)
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            return f"the result is of type {kind}, expected a dict."
        if missing := expected.keys() - found.keys():
            return f"the key {min(missing, key=str)!r} is missing."
        if odd := found.keys() - expected.keys():
            return f"the key {min(odd, key=str)!r} is not expected."
        faults = ((key, difference(found[key], expected[key], dtype)) for key in expected)
        return next((f"{key!r}: {fault}" for key, fault in faults if fault), None)
    same = found == expected
    return None if same else f"the result is {shown(found)}, expected {shown(expected)}."


def _taken(result):
    """NumPy's arrays and numbers as torch's and Python's; other results as they are."""
    if isinstance(result, np.ndarray):
        return torch.from_numpy(result.copy())
    return result.item() if isinstance(result, np.generic) else result


def _tensor_difference(found, expected, dtype):
    if isinstance(found, numbers.Number) and expected.dim() == 0:
        found = torch.tensor(found, dtype=expected.dtype)
    if not isinstance(found, torch.Tensor):
        return f"the result is of type {type(found).__name__}, expected a tensor."
    if found.shape != expected.shape:
        return f"the shape is {list(found.shape)}, expected {list(expected.shape)}."
    wide = {torch.float32, torch.float64}, {torch.complex64, torch.complex128}
    whole = {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64}
    alike = any({found.dtype, expected.dtype} <= kinds for kinds in (*wide, whole))
    if found.dtype != expected.dtype and (dtype or not alike):
        return f"the dtype is {found.dtype}, expected {expected.dtype}."
    found = found.detach().to(expected.device, torch.promote_types(found.dtype, expected.dtype))
    far = found != expected.detach()
    if expected.is_floating_point() or expected.is_complex():
        finite = expected[expected.isfinite()].abs()
        scale = finite.max() if finite.numel() else 1.0
        near = ((found - expected).abs() <= 1e-4 * scale) & (expected != 0)
        far &= ~(near | (found.isnan() & expected.isnan()))
    if not far.any():
        return None
    place = tuple(int(i) for i in far.nonzero()[0])
    mine, right = found[place].item(), expected[place].item()
    at = f"at {list(place)} " if place else ""
    digits = ".4g" if f"{mine:.4g}" != f"{right:.4g}" else ".9g"
    return f"{at}the value is {mine:{digits}}, expected {right:{digits}}."


def _same_form(found, expected):
    fault = difference(found, expected) or ""
    return not fault.startswith(("the shape", "the result is of type", "the dtype"))


def _has_nan(result):
    if isinstance(result, torch.Tensor):
        return bool(result.isnan().any())
    if isinstance(result, list | tuple):
        return any(map(_has_nan, result))
    return isinstance(result, float) and result != result


# --- What is said ---------------------------------------------------------------------------------


def wrapped(text):
    """A text in lines of at most 80 characters."""
    return "\n".join(textwrap.fill(line, 80) for line in text.splitlines())


def described(case):
    """The arguments of a case in few words: shapes of tensors, values of the rest."""
    return ", ".join(
        f"a tensor {list(x.shape)}" if isinstance(x, torch.Tensor) else shown(x) for x in case
    )


def shown(value, width=70):
    """A value as a message shows it, cut between two words if it is long."""
    text = repr(value)
    if len(text) <= width:
        return text
    short = textwrap.shorten(text, width, placeholder=" ...")
    return short if short != "..." else f"{text[:width]}..."


def _line_of(answer, error):
    """Where in the reader's own code an exception came from."""
    code = getattr(answer, "__code__", None)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if code and frame.filename == code.co_filename:
            line = linecache.getline(frame.filename, frame.lineno).strip()
            return f"\nIn your line {frame.lineno}: `{line}`" if line else ""
    return ""


def _tree(answer):
    """The syntax tree of the reader's function, None where its source is not known."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(answer)))
    except (OSError, TypeError, SyntaxError):
        return None
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda))
    return next(functions, None)  # without the line around a lambda: `check.softmax(lambda ...)`


def _why_none(answer, name):
    tree = _tree(answer)
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)] if tree else []
    if not found:
        return EMPTY
    body = [n for n in found[0].body
            if not (isinstance(n, ast.Pass)
                    or isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]  # fmt: skip
    if not body:
        return EMPTY
    if not any(isinstance(n, ast.Return) and n.value for n in ast.walk(found[0])):
        return "it returned None: its body has no `return` with the result behind it."
    return f"for {name} it returned None: one way through the function ends without a `return`."


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TimeoutError if the block takes longer: Python code, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    lock, state = threading.Lock(), []

    def stop():
        with lock:
            if not state:
                state.append("late")
                _thread.interrupt_main()

    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # ignored, as in a shell's background: nothing would be raised
        signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if state:
            raise TimeoutError from None
        raise
    finally:
        with lock:
            state.append("done")
        if not callable(handler) and handler is not None:
            signal.signal(signal.SIGINT, handler)
        timer.cancel()
