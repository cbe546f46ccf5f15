"""Known mistakes: the mutations of tests/core/mutations.toml, and their effects."""

import importlib.util
import inspect
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import torch

from llama3_scratch import PROMPT, cache, load, model
from llama3_scratch.config import RopeScaling

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"model": model, "cache": cache}


def read(path):
    return tomllib.loads((ROOT / path).read_text(encoding="utf-8"))


def mutated(module, right, wrong):
    """Return the module with one place of its source changed."""
    source = inspect.getsource(module)
    if source.count(right) != 1:
        raise ValueError(f"{right!r} stands {source.count(right)} times in {module.__name__}")
    copy = importlib.util.module_from_spec(module.__spec__)
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), copy.__dict__)
    return copy


THREAD = re.compile(r"([\w.-]+)/([\w.-]+)#(\d+)")
GROUPS = {
    "made": (
        "Reported in public",
        "For each of these, a GitHub issue or pull request, linked below it, reports or fixes "
        "exactly this mistake.",
    ),
    "near": (
        "Close to a reported one",
        "We found no report of these exact lines, but a report of a very similar mistake.",
    ),
    "nobody": (
        "Plausible",
        "We found no report of these. They are here because the line makes them likely.",
    ),
}


class Effects:
    """The effect of a broken line on the tiny model's answer to the book's prompt."""

    def __init__(self):
        stored, self.config, self.tokenizer = load("tiny")
        self.weights = {
            dtype: {name: stored[name].to(dtype) for name in stored}
            for dtype in (torch.float32, torch.bfloat16)
        }
        self.tokens = torch.tensor(self.tokenizer.encode(PROMPT))

    def run(self, forward, Cache, dtype, config, cached):
        """Return the last row of the logits, computed in one pass or token by token."""
        weights = {name: tensor.clone() for name, tensor in self.weights[dtype].items()}
        if not cached:
            return forward(weights, self.tokens, config)[-1]
        filled = Cache(config, len(self.tokens) + 1, dtype=dtype)
        return [forward(weights, token[None], config, filled) for token in self.tokens][-1][-1]

    def of(self, module, right, wrong, arguments):
        """Return a sentence on the first of three ways to run that shows an effect, if any does."""
        broken = mutated(module, right, wrong)
        forward = broken.forward if module is model else model.forward
        Cache = broken.Cache if module is cache else cache.Cache
        scaled = arguments.get("name") == "scaled RoPE"
        config = self.config
        if scaled:
            config = replace(config, rope_scaling=RopeScaling(8.0))
        wanted = getattr(torch, arguments.get("dtype", "float32"))
        for dtype, cached in ((wanted, False), (wanted, True), (torch.bfloat16, False)):
            true = self.run(model.forward, cache.Cache, dtype, config, cached)
            found = self.run(forward, Cache, dtype, config, cached)
            if true.dtype != found.dtype or not torch.equal(true, found):
                break
        else:
            return "No effect on this prompt: its last logits are equal in every bit."
        how = "token by token, with the cache, " if cached else ""
        how += "in bfloat16, " if dtype is torch.bfloat16 else ""
        how += "with Llama 3.1's scaled RoPE, " if scaled else ""
        words = how + self.sentence(true, found)
        return words[0].upper() + words[1:]

    def sentence(self, true, found):
        if true.dtype != found.dtype and torch.equal(true, found.type_as(true)):
            return f"the logits are the same numbers, of type {str(found.dtype).split('.')[-1]}."
        if not found.isfinite().all():
            return "the logits are no longer finite numbers."
        right, token = int(true.argmax()), int(found.argmax())
        word = self.tokenizer.decode([token])
        if token != right:
            return f"the answer is `{word!r}` (probability {found.softmax(-1)[token]:.2f})."
        largest = (found - true).abs().max()
        by = f"{largest:.1f}" if largest >= 0.05 else f"{largest:.4f}"
        return f"the answer is still `{word!r}`; a logit moves by up to {by}."


def whole_lines(module, right, wrong):
    """Return the line of the source before and after the change."""
    line = next(line for line in inspect.getsource(module).splitlines() if right in line).strip()
    return line, line.replace(right, wrong)


def threads(text):
    """owner/name#3 -> a link to that issue or pull request."""
    return THREAD.sub(r"[\2 #\3](https://github.com/\1/\2/issues/\3)", text)


def markdown():
    effects, sections, silent = Effects(), {group: [] for group in GROUPS}, 0
    mutations, reports = read("tests/core/mutations.toml"), read("site/reports.toml")
    lost = set(reports) - set(mutations)
    if lost:
        raise KeyError(f"reports.toml names what is no mutation: {sorted(lost)}")
    for fault, mutation in mutations.items():
        name, right, wrong = (mutation[key] for key in ("module", "right", "wrong"))
        effect = effects.of(MODULES[name], right, wrong, mutation.get("arguments", {}))
        silent += "still" in effect or "same" in effect or "No effect" in effect
        title = fault if fault[1].isdigit() else fault[0].upper() + fault[1:]
        before, after = whole_lines(MODULES[name], right, wrong)
        [(group, who)] = reports.get(fault, {"nobody": ""}).items()
        if who:
            who = f"\n\n*{'Reported in' if group == 'made' else 'Similar'}:* {threads(who)}"
        sections[group].append(
            f"### {title}\n\n```diff\n- {before}\n+ {after}\n```\n\n"
            f"{effect} Caught by `{mutation['test']}`. The line is in `{name}.py`.{who}"
        )
    top = (
        "# Known mistakes\n\n"
        f"This page lists {len(mutations)} wrong lines of the kind found in walkthroughs and "
        "reimplementations of Llama and related models. Each runs without an error, and for each a "
        "test must fail when the line is put in (`tests/core/test_breakage.py`). The effect of "
        "every wrong line on the tiny model's answer to the book's prompt was computed while this "
        f"page was built. In {silent} cases the answer stays the same: one right answer validates "
        "nothing; only a comparison of all logits shows the mistake.\n\n"
        f"Public threads report {len(sections['made'])} of these mistakes, and mistakes close to "
        f"{len(sections['near'])} more. Being named here is no reproach: these are projects in "
        "which somebody looked."
    )
    parts = [
        "\n\n".join([f"## {title}", words, *sections[group]])
        for group, (title, words) in GROUPS.items()
        if sections[group]
    ]
    return "\n\n".join([top, *parts])
