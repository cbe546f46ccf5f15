"""One model by layers: nothing changes but the place where a layer is computed."""

import dataclasses

import pytest
import ranks
import torch
from helpers import BYTES, make_tokens, make_weights, metas_weights, write

from llama3_scratch import Cache, InputError, forward, generate, save
from llama3_scratch.checkpoint.source import open_checkpoint
from llama3_scratch.pipeline import open_stage, shares
from llama3_scratch.processes import run_on

EIGHT = ranks.EIGHT
TIED = dataclasses.replace(EIGHT, tied_output=True)
TOKENS = make_tokens(EIGHT, 11, seed=3)
PROMPT = TOKENS[:6].tolist()


def saved(folder, config):
    weights = metas_weights(config)
    save(folder, weights, config, BYTES)
    return weights


@pytest.mark.parametrize(("config", "layers"), [
    (EIGHT, [3, 2]), (EIGHT, [1, 4]), (EIGHT, [1, 2, 1, 1]), (TIED, [2, 3]), (TIED, [2, 2, 1]),
])  # fmt: skip
def test_stages_keep_every_bit(tmp_path, config, layers):
    weights = saved(tmp_path / "model", config)
    with torch.inference_mode():
        whole, cache = forward(weights, TOKENS, config), Cache(config, len(TOKENS))
        cached = [forward(weights, span, config, cache) for span in TOKENS.split(len(TOKENS) - 1)]
    ids = list(generate(weights, PROMPT, config, 12, temperature=1.0, seed=7))
    found = run_on(len(layers), ranks.staged, tmp_path / "model", layers, TOKENS, PROMPT)
    for ours, ours_cached, ours_ids, _ in found:
        assert torch.equal(ours, whole) and torch.equal(ours_cached, torch.cat(cached))
        assert ours_ids == ids
    held = sum(n_parameters for *_, n_parameters in found)
    twice = config.vocab_size * config.dim if config.tied_output else 0  # first and last rank
    assert held == config.n_parameters + twice + (len(layers) - 1) * config.dim


def test_a_stage_that_skips_a_layer_is_noticed(tmp_path):
    weights = saved(tmp_path / "model", EIGHT)
    with torch.inference_mode():
        whole = forward(weights, TOKENS, EIGHT)
    (skipped, *_), _ = run_on(2, ranks.staged, tmp_path / "model", [2, 2], TOKENS, PROMPT)
    assert not torch.equal(skipped, whole)


def test_a_stage_reads_only_its_layers(tmp_path):
    weights = make_weights(EIGHT)
    write(tmp_path / "model", EIGHT, weights)
    stored = open_checkpoint(tmp_path / "model")
    part = open_stage(stored, 1, [2, 2, 1])
    assert part.config.n_layers == 2 and len(part.weights) == 2 * 9 + 1
    assert torch.equal(part.weights["layers.1.attention.wq.weight"],
                       weights["layers.3.attention.wq.weight"])  # fmt: skip
    assert part.weights["layers.1.attention.wk.weight"] is not None
    assert {int(name.split(".")[1]) for name in stored.weights.used} == {3}


@pytest.mark.parametrize(("n_layers", "spare", "expected"), [
    (6, [1, 1], [3, 3]), (6, [100, 101], [3, 3]), (6, [2, 1], [4, 2]), (6, [100, 1], [5, 1]),
    (6, [1, 100], [1, 5]), (5, [1, 1], [3, 2]), (80, [24, 80, 24, 24], [13, 43, 12, 12]),
    (4, [1000, 1, 1, 1], [1, 1, 1, 1]),
])  # fmt: skip
def test_layers_are_shared_out_by_memory(n_layers, spare, expected):
    assert shares(n_layers, spare) == expected
    assert sum(expected) == n_layers


def test_more_ranks_than_layers_are_refused():
    with pytest.raises(InputError, match="n_layers is 2: expected one or more for each of 3 ranks"):
        shares(2, [1, 1, 1])
