"""Sizes, names and `params.json`."""

import json

import pytest
from helpers import CONFIGS, config_json

from llama3_scratch import PRESETS, Config, InputError, weight_shapes
from llama3_scratch.config import RopeScaling

PARAMS = {
    "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
    "multiple_of": 1024, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0,
}  # fmt: skip


def read(tmp_path, params):
    path = tmp_path / "params.json"
    path.write_text(params if isinstance(params, str) else json.dumps(params))
    return Config.from_params(path)


def test_llama_3_8b_has_its_known_sizes(tmp_path):
    config = read(tmp_path, PARAMS)
    assert config == PRESETS["Llama-3-8B"]
    assert config.sizes == {
        "V": 128256, "L": 32, "D": 4096, "F": 14336, "N": 32, "K": 8, "G": 4, "H": 128, "P": 64,
    }  # fmt: skip
    assert config.n_parameters == 8_030_261_248
    shapes = weight_shapes(config)
    names = list(shapes)
    assert names[0] == "tok_embeddings.weight" and names[-2:] == ["norm.weight", "output.weight"]
    assert len(names) == 3 + 9 * 32
    assert shapes["layers.31.attention.wk.weight"] == (1024, 4096)
    assert shapes["layers.0.feed_forward.w2.weight"] == (4096, 14336)


def test_presets_equal_metas_list_of_models():
    """Sizes against Meta's own list of its models, in llama-models."""
    from llama_models.sku_list import all_registered_models

    released = {}
    for sku in all_registered_models():
        if sku.arch_args.get("vocab_size") == 128256 and "vision" not in str(sku.arch_args):
            name = sku.huggingface_repo.removeprefix("meta-llama/")
            released.setdefault(name, []).append(sku.arch_args)  # the 405B has several layouts
    for name, config in PRESETS.items():
        params = config.to_params()
        params.pop("rope_scaling", None), params.pop("tied_output", None)
        theirs = [{key: value for key, value in one.items() if value} for one in released[name]]
        assert params in theirs, name


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_equal_hugging_faces(name):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = PRESETS[name]
    with torch.device("meta"):
        reference = LlamaForCausalLM(LlamaConfig(**config_json(config)))
    assert config.n_parameters == sum(p.numel() for p in reference.parameters())


def test_use_scaled_rope_means_factor_8_except_for_3_2(tmp_path):
    scaled = PARAMS | {"use_scaled_rope": True}
    assert read(tmp_path, scaled) == PRESETS["Llama-3.1-8B"]
    assert read(tmp_path, scaled).rope_scaling.factor == 8
    assert read(tmp_path, PARAMS | {"use_scaled_rope": False}).rope_scaling is None
    small = scaled | {"dim": 2048, "n_layers": 16, "multiple_of": 256, "ffn_dim_multiplier": 1.5}
    assert read(tmp_path, small) == PRESETS["Llama-3.2-1B"]
    assert read(tmp_path, small).rope_scaling.factor == 32 and read(tmp_path, small).tied_output
    own = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}
    assert read(tmp_path, small | {"rope_scaling": own}).rope_scaling == RopeScaling(4.0)


@pytest.mark.parametrize("config", [*CONFIGS.values(), *PRESETS.values()])
def test_a_config_survives_to_params_and_from_params(tmp_path, config):
    assert read(tmp_path, config.to_params()) == config


@pytest.mark.parametrize(("change", "says"), [
    ({"dim": None}, "dim is None: expected a positive whole number"),
    ({"dim": 4096.0}, "dim is 4096.0: expected a positive whole number"),
    ({"n_layers": 0}, "n_layers is 0: expected a positive whole number"),
    ({"n_layers": True}, "n_layers is True"), ({"n_layers": "32"}, "n_layers is '32'"),
    ({"norm_eps": -1e-5}, "norm_eps is -1e-05: expected a positive number"),
    ({"norm_eps": 10**400}, "norm_eps is 1000"), ({"vocab_size": -1}, "vocab_size is -1"),
    ({"rope_theta": float("nan")}, "rope_theta is nan: expected a positive number"),
    ({"rope_theta": float("inf")}, "rope_theta is inf: expected a positive number"),
    ({"n_kv_heads": 7}, "n_heads is 32: expected a multiple of n_kv_heads, which is 7"),
    ({"dim": 4098}, "dim is 4098: expected a multiple of 2 x n_heads = 64"),
    ({"n_heads": 4096}, "dim is 4096: expected a multiple of 2 x n_heads = 8192"),
    ({"ffn_dim_multiplier": 1e308}, "ffn_dim_multiplier is 1e+308: expected a positive number"),
    ({"ffn_dim_multiplier": 1e-30}, "is 0: expected 1 or more"),
    ({"use_scaled_rope": 8}, "use_scaled_rope is 8: expected true or false"),
    ({"tied_output": "no"}, "tied_output is 'no': expected true or false"),
    ({"rope_scaling": 8}, "rope_scaling is 8: expected an object with factor"),
    ({"rope_scaling": {}}, "rope_scaling is {}: expected an object with factor"),
    ({"rope_scaling": {"factor": 0}}, "rope_scaling.factor is 0: expected a positive number"),
    ({"rope_scaling": {"factor": 8, "low_freq_factor": 4}}, "expected less than high_freq_factor"),
    ({"rope_scaling": {"factr": 8}}, "factr"), ({"n_experts": 8}, "unknown key 'n_experts'"),
    ({"vision_chunk_size": 448}, "unknown key 'vision_chunk_size'"),
])  # fmt: skip
def test_bad_values_are_named(tmp_path, change, says):
    with pytest.raises(InputError) as error:
        read(tmp_path, PARAMS | change)
    assert says in str(error.value) and "params.json" in str(error.value)
    assert len(str(error.value).splitlines()) < 24


def test_all_missing_keys_are_named(tmp_path):
    with pytest.raises(InputError) as error:
        read(tmp_path, {"dim": 8, "n_layers": 2})
    for key in PARAMS.keys() - {"dim", "n_layers", "ffn_dim_multiplier"}:
        assert f"missing key '{key}'" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "7", "null", "[" * 100_000, '{"dim": 1e999}'])
def test_garbled_json_is_an_input_error(tmp_path, text):
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert len(str(error.value)) < 1000
