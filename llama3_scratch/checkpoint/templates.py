"""A conversation -> ids: in Meta's chat format, or by the chat template of a model's own files.

Such a template is a program in the language Jinja that writes the conversation as one text; it is
rendered as transformers does (`apply_chat_template`), in Jinja's sandbox, with bounds.
"""

import contextlib
import datetime
import json
import re
import sys
import time
from typing import NamedTuple

import jinja2
import psutil
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama3_scratch.checkpoint import gguf
from llama3_scratch.config import read_json
from llama3_scratch.errors import InputError, first_line, read_file, require, short
from llama3_scratch.tokenizer import ROLES, Tokenizer

FORMATS = "meta", "huggingface"
LONGEST, LONGEST_OUTPUT = 200_000, 10**7  # characters of a template, and of what it writes
SECONDS, BYTES = 10.0, 2**30  # that rendering may take
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
         "mask_token")  # fmt: skip
OPEN, CLOSE = "\ufdd0", "\ufdd1"  # around a token's name that is text; Unicode has no such letters
# Hugging Face's format of Llama 3 and 3.1, for Meta's files, which have no template.
TURN = (
    "{{ bos_token }}{% macro turn(role, text) %}<|start_header_id|>{{ role }}<|end_header_id|>\n\n"
    "{{ text }}<|eot_id|>{% endmacro %}"
)
TURNS = (
    "{% for message in messages %}{{ turn(message.role, message.content | trim) }}{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}"
)
DATES = (
    "{% set system = messages[0].role == 'system' %}{% set messages = messages[system | int :] %}"
    "{{ turn('system', 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' "
    "~ (first | trim if system else '')) }}"
)
LLAMA_3S = {
    "3": TURN + TURNS,
    "3.1": TURN + "{% set first = messages[0].content %}" + DATES + TURNS,
}


class Turn(NamedTuple):
    """A question, and the ids of its answer without the token that ended it."""

    question: str
    answer: list


class Prompt(NamedTuple):
    """The ids of a conversation up to the answer's header; the text they were made from, if any."""

    ids: list
    text: str | None = None


class MetasFormat:
    """Meta's chat format, as `Tokenizer.encode_chat` has it."""

    def __init__(self, tokenizer):
        self.tokenizer, self.stop_ids = tokenizer, tokenizer.stop_ids

    def prompt(self, system, turns, question, last=None):
        """As in `Template.prompt`; an answer's ids are never made anew."""
        encode, header = self.tokenizer.encode_chat, self.tokenizer.encode_chat([])[1:]
        first = encode([_message("system", system)] if system else [])
        ids = first[: -len(header)]
        for turn in turns:
            ids += encode([_message("user", turn.question)])[1:]
            ids += [*turn.answer, self.tokenizer.special["<|eot_id|>"]]
        return Prompt(ids + encode([_message("user", question)])[1:])


class Template:
    """A chat template of Hugging Face's kind, and the tokenizer that encodes what it writes."""

    def __init__(self, source, tokenizer, variables, where):
        """source: in Jinja. variables: {"bos_token": its name, ...}. where: for messages.

        Raises `InputError` if the source is no template.
        """
        self.tokenizer, self.variables, self.where = tokenizer, variables, where
        require(
            isinstance(source, str) and len(source) <= LONGEST,
            f"the chat template of {where} is {short(source)}: expected a text of at most "
            f"{LONGEST:,} characters.",
        )
        self._template = self._bounded(_environment().from_string, source)
        added = dict.fromkeys(tokenizer.special, True) or tokenizer.added
        names = [name for name, special in added.items()
                 if name.strip() and (special or name in source)]  # fmt: skip
        names = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
        self._names = re.compile(names)
        self._marks = re.compile(f"{OPEN}({names}){CLOSE}|[{OPEN}{CLOSE}]")
        end = [variables["eos_token"]] if variables.get("eos_token") in added else []
        self.stop_ids = tokenizer.stop_ids.union(*(self._encode(name) for name in end))

    def encode(self, messages):
        """Turns of a conversation -> the ids after which the model writes its answer.

        messages: as in `Tokenizer.encode_chat`. The ids are those of transformers'
        `apply_chat_template(messages, add_generation_prompt=True)`, with one exception: a special
        token's name within a message is encoded as text there, as in Meta's format. Raises
        `InputError`, also for what the template itself refuses.
        """
        return self._encode(self._render(messages))

    def prompt(self, system, turns, question, last=None):
        """A system message or None, [Turn], the next question -> Prompt.

        last: the prompt of the last turn. Its ids and its answer's stay as they are, and only what
        the template writes after them is encoded. Where it writes the earlier text in another way
        (it trims an answer, say), all of it is encoded anew.
        """
        messages = [_message("system", system)] if system else []
        answers = ["".join(self.tokenizer.stream(turn.answer)) for turn in turns]
        for turn, answer in zip(turns, answers, strict=True):
            messages += [_message("user", turn.question), _message("assistant", answer)]
        text = self._render([*messages, _message("user", question)])
        if last and turns:
            before = last.text + self._marked(answers[-1])
            rest = text[len(before) :]
            if text.startswith(before) and self._names.match(rest):
                return Prompt(last.ids + turns[-1].answer + self._encode(rest), text)
        return Prompt(self._encode(text), text)

    def _marked(self, text):
        """Put marks around the names of special tokens, and remove any that are there."""
        return self._names.sub(rf"{OPEN}\g<0>{CLOSE}", re.sub(f"[{OPEN}{CLOSE}]", "", text))

    def _render(self, messages):
        """Messages -> the template's text, with marks around special tokens' names in messages."""
        marked = []
        for message in messages:
            right = isinstance(message, dict) and message.keys() == {"role", "content"}
            require(
                right and message["role"] in ROLES and isinstance(message["content"], str),
                f"found the message {short(message)}: expected the keys role and content, both "
                f"text, where the role is one of {', '.join(ROLES)}; tools are not supported.",
            )
            marked.append(_message(message["role"], self._marked(message["content"])))
        require(marked, "the conversation has no messages: expected at least one.")

        def whole():
            parts, length = [], 0
            for part in self._template.generate(
                messages=marked, tools=None, documents=None, add_generation_prompt=True,
                **self.variables,
            ):  # fmt: skip
                parts.append(part)
                length += len(part)
                if length > LONGEST_OUTPUT:
                    raise OverflowError(f"it writes more than {LONGEST_OUTPUT:,} characters")
            return "".join(parts)

        return self._bounded(whole)

    def _bounded(self, function, *arguments):
        """Call the sandbox, in bounds; every error of it is an `InputError`."""
        try:
            with _bounds():
                return function(*arguments)
        except Exception as error:
            what = first_line(error) or type(error).__name__
            where = f" in line {error.lineno}" if hasattr(error, "lineno") else ""
            message = f"the chat template of {self.where} fails{where}: {what}"
        raise InputError(message)

    def _encode(self, text):
        """Encode a text in which the names of special tokens stand for them, unless marked."""
        ids = []
        for i, piece in enumerate(self._marks.split(text)):
            if piece and i % 2 == 0:
                ids += self.tokenizer.encode(piece, bos=False, allowed_special="all")
            elif piece:
                as_text = self.tokenizer.encode(piece, bos=False)
                require(
                    as_text != self.tokenizer.encode(piece, bos=False, allowed_special="all"),
                    f"a message holds {piece!r}, which this tokenizer takes for one of the model's "
                    "own tokens also within a text: leave it out.",
                )
                ids += as_text
        return ids


def chat_format(path, tokenizer, name=None):
    """What `find` returned, its tokenizer, "meta" or "huggingface" -> MetasFormat or Template.

    None takes the checkpoint's own template, or Meta's format if it has none. "huggingface" without
    a template of its own is the one of Llama 3, or of 3.1 with the date 26 Jul 2024, which the
    3.1's has if it is told none. Raises `InputError`.
    """
    source, variables = (None, {}) if name == "meta" else read_template(path)
    llama_3s = isinstance(tokenizer, Tokenizer)
    if source is None and name == "huggingface" and llama_3s:
        source = LLAMA_3S[tokenizer.release]
        variables = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    if source is not None:
        return Template(source, tokenizer, variables, path)
    require(
        llama_3s,
        f"the tokenizer of {path} is not Llama 3's, "
        + ("so that Meta's chat format does not fit it: leave out --template meta."
           if name == "meta" else
           "and there is no chat template (in tokenizer_config.json, or as chat_template.jinja): "
           "how to talk with this model is not known."),
    )  # fmt: skip
    return MetasFormat(tokenizer)


def read_template(path):
    """What `find` returned -> (its chat template or None, {"bos_token": its name, ...}).

    The file chat_template.jinja comes before tokenizer_config.json's `chat_template`, and of
    several templates the one named "default" is taken, as in transformers.
    """
    if path.is_file():
        return gguf.read_template(path)
    settings = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path / name).exists() and "added_tokens_decoder" not in settings:
            settings |= read_json(path / name)
    variables = {}
    for name in NAMED:
        said = settings.get(name)
        variables[name] = said.get("content") if isinstance(said, dict) else said
    variables = {name: said for name, said in variables.items() if isinstance(said, str)}
    source = settings.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source
                  if isinstance(entry, dict) and entry.keys() >= {"name", "template"}}  # fmt: skip
    if (path / "chat_template.jinja").exists():
        source = read_file(path / "chat_template.jinja").decode("utf-8", errors="replace")
    if isinstance(source, dict):
        require(
            "default" in source,
            f"{path} has several chat templates, {short(list(source))}: expected one of the name "
            "'default'.",
        )
        source = source["default"]
    return source, variables


def _message(role, content):
    return {"role": role, "content": content}


def _environment():
    """Jinja's sandbox, with what transformers offers to a chat template."""

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)  # fmt: skip

    def strftime_now(how):
        return datetime.datetime.now().strftime(how)

    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return made


class _Sandbox(ImmutableSandboxedEnvironment):
    """Without powers: one such as 10 ** 10 ** 10 computes for hours and cannot be stopped."""

    intercepted_binops = frozenset(["**"])

    def call_binop(self, context, operator, left, right):
        raise jinja2.TemplateError(f"the operator {operator} is not supported in templates")


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, which in training marks what a model says."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


@contextlib.contextmanager
def _bounds():
    """Stop what runs inside after SECONDS, and where the system can, at BYTES more of memory."""
    end = time.monotonic() + SECONDS

    def late(*_):
        if time.monotonic() > end:
            raise TimeoutError(f"it takes more than {SECONDS:.0f} seconds")
        return late

    with _memory_bounded():
        before = sys.gettrace()
        sys.settrace(late)
        try:
            yield
        finally:
            sys.settrace(before)


@contextlib.contextmanager
def _memory_bounded():
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + BYTES
    if soft == resource.RLIM_INFINITY or soft > most:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
