"""Each entry of mutations.toml breaks one line, and the test that it names must fail."""

import importlib.util
import inspect
import tomllib

import pytest
import test_model
import torch
from helpers import ROOT

from llama3_scratch import cache, model

MODULES = {"model": model, "cache": cache}
MUTATIONS = tomllib.loads((ROOT / "tests/core/mutations.toml").read_text(encoding="utf-8"))


def mutated(module, right, wrong):
    """Return the module with one place of its source changed."""
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{right!r} occurs {source.count(right)} times"
    copy = importlib.util.module_from_spec(module.__spec__)
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), copy.__dict__)
    return copy


def call(mutation, metas_transformer):
    """Run the test that a mutation names; those that compare with Meta's get the reference."""
    function = getattr(test_model, mutation["test"])
    arguments = dict(mutation.get("arguments", {}))
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, arguments["dtype"])
    if "metas_transformer" in inspect.signature(function).parameters:
        arguments["metas_transformer"] = metas_transformer
    function(**arguments)


@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_broken_line_is_noticed(fault, monkeypatch, metas_transformer):
    mutation = MUTATIONS[fault]
    module = MODULES[mutation["module"]]
    broken = mutated(module, mutation["right"], mutation["wrong"])
    monkeypatch.setattr(test_model, mutation["module"], broken)
    with pytest.raises(AssertionError):  # not a crash: the wrong line runs, its result is compared
        call(mutation, metas_transformer)


@pytest.mark.parametrize("test", sorted({entry["test"] for entry in MUTATIONS.values()}))
def test_unchanged_modules_pass(test, monkeypatch, metas_transformer):
    """The control: unchanged copies of the modules pass every test that is named."""
    mutation = next(entry for entry in MUTATIONS.values() if entry["test"] == test)
    for name, module in MODULES.items():
        monkeypatch.setattr(test_model, name, mutated(module, "import torch\n", "import torch\n"))
    call(mutation, metas_transformer)


def test_there_are_enough_mutations():
    assert len(MUTATIONS) >= 41
