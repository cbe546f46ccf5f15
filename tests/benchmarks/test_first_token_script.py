"""The files of first_token.py: both layouts hold the same model, with Llama 3's own tokenizer."""

import dataclasses

import torch
from helpers import ROOT

from llama3_scratch import PRESETS, PROMPT, Tokenizer, load

SMALL = {"dim": 96, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2}


@torch.inference_mode()
def test_both_layouts_are_the_same_model(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import first_token

    metas, theirs, wrong = (tmp_path / name for name in ("meta", "hf", "wrong"))
    for folder in (metas, theirs, wrong):
        folder.mkdir()
    config = dataclasses.replace(PRESETS["Llama-3-8B"], **SMALL)
    first_token.write_metas(metas, None, config)
    first_token.write_hugging_faces(theirs, metas, config)
    *_, right = first_token.ours(metas)
    *_, found = first_token.ours(theirs)
    *_, transformers = first_token.hugging_faces(theirs)
    assert torch.equal(found, right)
    assert (transformers - right).abs().max() < 0.05 * right.abs().max()
    tokenizer = load(theirs).tokenizer
    assert isinstance(tokenizer, Tokenizer) and tokenizer.encode(PROMPT)[0] == 128000
    write = first_token.write_safetensors
    monkeypatch.setattr(  # the control: query and key rows stay in Meta's order
        first_token, "write_safetensors", lambda path, tensors, H: write(path, tensors, 2)
    )
    first_token.write_hugging_faces(wrong, metas, config)
    *_, other = first_token.ours(wrong)
    assert (other - right).abs().max() > 0.05 * right.abs().max()
