"""benchmarks/speed.py: it runs, writes the form that notebook 23 draws, and times what it says."""

import json

import pytest
import torch
from helpers import ROOT, close, make_tokens

from llama3_scratch import Config, forward

SMALL = Config(64, 2, 4, 2, 128256, 32, 1e-5, 500000.0, tied_output=True)  # llama.cpp's vocabulary
NAMES = {  # not transformers_compiled, which needs a C++ compiler; one of llama.cpp's files
    "limit", "walkthrough", "readable", "attend_fused", "quick", "int8", "int4", "transformers",
    "llama.cpp Q4_0",
}  # fmt: skip


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import speed

    monkeypatch.setattr(speed, "PRESETS", {"small": SMALL})
    return speed


def test_it_writes_what_the_notebook_draws(speed, tmp_path, capsys):
    file = tmp_path / "new" / "own.json"
    words = ["--preset", "small", "--repeats", "1", "--prompts", "3", "--json", str(file)]
    sizes = ["--positions", "4", "7", "--batches", "2", "--only"]
    speed.main([*words, *sizes, *NAMES])
    first = json.loads(file.read_text())
    speed.main([*words, "--positions", "7", "9", "--batches", "--add", "--only", "quick", "limit"])
    results = json.loads(file.read_text())
    assert (results["preset"], results["layers"]) == ("small", 2)
    assert {"processor", "cores", "threads", "torch", "transformers"} <= results["machine"].keys()
    lines = {(x["what"], x["n"], x["batch"]): x["rates"].keys() for x in results["measured"]}
    assert lines == {
        ("prompt", 3, 1): NAMES - {"limit"},
        ("token", 4, 1): NAMES, ("token", 7, 1): NAMES,
        ("token", 9, 1): {"quick", "limit"},
        ("batch", 32, 2): {"limit", "attend_fused", "quick", "int8", "int4", "transformers"},
    }  # fmt: skip
    assert all(rate > 0 for line in results["measured"] for rate in line["rates"].values())
    old, new = (next(x["rates"] for x in found["measured"] if x["n"] == 7)
                for found in (first, results))  # fmt: skip
    assert old["int8"] == new["int8"]
    assert results["fits"]["token"]["ways"].keys() == {"quick", "limit"}
    assert "| quick / transformers | " in capsys.readouterr().out


@torch.inference_mode()
def test_each_way_computes_what_the_core_does(speed, tmp_path):
    found = speed.ways(SMALL, ["readable", "walkthrough"], tmp_path, 16)
    weights, tokens = found["readable"].weights, make_tokens(SMALL, 5)
    exact = forward(weights, tokens, SMALL)[-1]
    close(found["walkthrough"].logits(tokens), exact, 2**-6)
    wrong = forward(weights, tokens.flip(0), SMALL)[-1]  # the control
    with pytest.raises(AssertionError):
        close(found["walkthrough"].logits(tokens), wrong, 2**-6)


def test_a_fit_finds_the_two_costs(speed):
    a, b, off = speed.fit({n: 0.3 + 0.002 * n for n in (32, 1024, 4096)}, (0, 1))
    assert (a, b) == pytest.approx((0.3, 0.002)) and off < 1e-9
    a, b, off = speed.fit({n: 0.1 * n + 1e-6 * n**2 + (n == 17) for n in (17, 128, 512)}, (1, 2))
    assert off > 0.05
