"""Test the real Meta-Llama-3-8B, for those who have it: `make test-real`. Otherwise skip.

The environment's LLAMA3_CHECKPOINT names its folder, with Meta's files or Hugging Face's. The
notebooks run on it as they are; no cell may fail, and no output is compared.
"""

import math
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from llama3_scratch import PRESETS, PROMPT, InputError, generate, load
from llama3_scratch.__main__ import main
from llama3_scratch.checkpoint.source import open_checkpoint

NAMED = os.environ.get("LLAMA3_CHECKPOINT", "")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IDS = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395, 374]
IDS += [220]


def why_not():
    """Return what is missing for these tests; empty if nothing is."""
    wanted = "needs the real weights: LLAMA3_CHECKPOINT=<folder of Meta-Llama-3-8B> make test-real"
    try:
        named = NAMED not in ("", "tiny", "random")
        config = open_checkpoint(NAMED).config if named else None
    except InputError as error:
        return f"{wanted}. Now: {error}"
    fits = config == PRESETS["Llama-3-8B"]
    return "" if fits else f"{wanted}. Now it is {NAMED!r}."


real = pytest.mark.skipif(bool(why_not()), reason=why_not())


def test_every_notebook_of_the_book_is_run():
    """From 00 on; also without the real weights."""
    names = [path.name[:2] for path in NOTEBOOKS]
    assert names[0] == "00" and {"09", "10", "11"} <= {*names} and len({*names}) == len(names)


@real
def test_the_parameters_the_prompts_ids_and_the_next_token_are_the_known_ones():
    weights, config, tokenizer = load(NAMED)
    counted = sum(math.prod(weights[name].shape) for name in weights)
    assert counted == config.n_parameters == 8_030_261_248
    assert tokenizer.encode(PROMPT) == IDS
    assert list(generate(weights, IDS, config, 1)) == [2983] and tokenizer.decode([2983]) == "42"


@real
@pytest.mark.parametrize("against", [None, "published", "transformers"])
def test_verify_finds_no_fault(against, capsys):
    assert main(["verify", NAMED, *(["--against", against] if against else [])]) == 0
    assert "FAULT" not in capsys.readouterr().out


@real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path):
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env"]
    done = subprocess.run(
        [*command, "-p", "no:xdist", "--nbval-cell-timeout=3600", path],
        env=os.environ | {"LLAMA3_CHECKPOINT": NAMED}, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stdout[-6000:] + done.stderr[-2000:]
