"""Meta's implementation under `watch`, and the table that compares ours with it."""

import subprocess
import sys

import pytest
import torch
from helpers import ODD, make_tokens, make_weights

from llama3_scratch import InputError, model
from llama3_scratch.config import RopeScaling, replace
from llama3_scratch.reference import ledger, metas_calls
from llama3_scratch.watch import watch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metas_calls_equal_metas_whole_forward_pass(metas_transformer, dtype):
    """Layer by layer, the bits equal those of Meta's `Transformer` with all weights at once."""
    weights, tokens = make_weights(ODD, dtype), make_tokens(ODD, 9)
    calls = metas_calls(weights, tokens, ODD)
    assert torch.equal(
        calls["Transformer"][0]["return"], metas_transformer(ODD, weights)(tokens[None])
    )
    lengths = {name: len(found) for name, found in calls.items()}
    assert lengths == {
        "RMSNorm": 2 * ODD.n_layers + 1, "apply_rotary_emb": ODD.n_layers,
        "Attention": ODD.n_layers, "FeedForward": ODD.n_layers, "TransformerBlock": ODD.n_layers,
        "Transformer": 1,
    }  # fmt: skip
    with watch(model.attend) as seen:
        model.forward(weights, tokens, ODD)
    for ours, theirs in zip(seen, calls["Attention"], strict=True):
        assert torch.equal(ours["probabilities"], theirs["scores"][0])
    assert torch.get_default_dtype() == torch.float32


def test_layers_may_be_left_out():
    calls = metas_calls(make_weights(ODD), make_tokens(ODD, 5), ODD, n_layers=1)
    assert len(calls["TransformerBlock"]) == 1


def test_metas_code_runs_with_another_factor_than_its_own():
    """Llama 3.2 scales RoPE by 32; Meta's code has a factor of 8 and 8192 tokens built in."""
    weights, tokens = make_weights(ODD), make_tokens(ODD, 200)
    logits = {}
    for factor in (8.0, 32.0):
        config = replace(ODD, rope_scaling=RopeScaling(factor))
        logits[factor] = model.forward(weights, tokens, config)
        theirs = metas_calls(weights, tokens, config)["Transformer"][0]["return"][0]
        assert torch.equal(logits[factor], theirs)
    assert not torch.equal(logits[8.0], logits[32.0]), "the control"


def test_a_missing_package_is_named():
    code = "import sys; sys.modules['fairscale'] = None\n"
    code += "from llama3_scratch import reference\nreference.metas_calls({}, [], None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError" in done.stderr and "pip install 'llama3-scratch[notebooks]'" in done.stderr


def test_the_ledger_distinguishes_equal_from_rounded_and_refuses_the_rest(capsys):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    masked = x.where(x > 0, -torch.inf)
    ledger({"same": (x, x[None]), "rounded": (x, x * (1 + 1e-6)), "masked": (masked, masked)})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["0", "rounding", "0"]
    assert lines[1].split()[:4] == ["same", "[3,", "4]", "float32"]
    for other in (x * 1.001, x.T, x.double(), x.where(x > 0, torch.nan)):
        with pytest.raises(InputError, match="stage: "):
            ledger({"stage": (x, other)})
