"""What the tests share: sizes, weights, folders in Meta's and Hugging Face's form, comparisons."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from llama3_scratch import (
    Config,
    InputError,
    Tokenizer,
    forward,
    generate,
    load,
    random_weights,
    save,
)
from llama3_scratch.__main__ import main
from llama3_scratch.config import RopeScaling
from llama3_scratch.tokenizer import SPLIT_PATTERN, special_tokens

ROOT = Path(__file__).parents[1]

# No two sizes are equal, so that a transposed view cannot pass: D 60, L 4, N 6, K 2, G 3, H 10,
# P 5, F 77, V 101.
ODD = Config(60, 4, 6, 2, 101, 7, 1e-5, 500000.0, 0.48)
CONFIGS = {
    "odd sizes": ODD,
    "Llama's ratios": Config(192, 3, 8, 2, 512, 32, 1e-5, 500000.0, 1.3),
    "three to a group, no multiplier": Config(90, 3, 9, 3, 103, 13, 1e-5, 500000.0),
    "multi-query": Config(96, 2, 6, 1, 107, 32, 1e-6, 10000.0, 1.3),
    "multi-head": Config(84, 3, 6, 6, 109, 11, 1e-5, 500000.0, 1.1),
    "scaled RoPE": Config(144, 2, 6, 2, 113, 32, 1e-5, 500000.0, 1.3, RopeScaling(8.0)),
}


def make_weights(config, dtype=torch.float32, seed=0):
    """Return random weights whose norms are not all ones, so that a forgotten one is noticed."""
    weights = random_weights(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            weights[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def make_tokens(config, *shape, seed=0):
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance=1e-5):
    """Assert that the largest difference is within `tolerance` of the largest value (rounding)."""
    assert ours.shape == theirs.shape
    worst = (ours - theirs).abs().max()
    assert worst <= tolerance * theirs.abs().max(), f"differs by {worst}"


def corpus(n=3000, seed=0):
    """Strings of many kinds: scripts, digits, white space, control characters, emoji, code."""
    chance = random.Random(seed)
    blocks = [
        (0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x600, 0x6FF),
        (0x900, 0x97F), (0xE00, 0xE5B), (0x1100, 0x11FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
        (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x300, 0x36F), (0x2000, 0x206F), (0, 0x1F),
        (0x660, 0x669), (0x966, 0x96F), (0xFF10, 0xFF19), (0x10000, 0x1005D), (0xE000, 0xE0FF),
    ]  # fmt: skip
    traps = [
        "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|", "<|start_header_id|>user", "<|", "|>",
        "<|reserved_special_token_7|>", "👩‍👩‍👧‍👦", "🏳️‍🌈", "é", "e\u0301", "I'll", "WE'VE", "don’t",
        "def f(x):\n\treturn x**2  # ok\n", "for(;;){i+=1;}", "a  b", "\r\n\r\n", "\u00a0",
        "\u3000", "3.14159", "12345678", "１２３", "x" * 50, " " * 50, "\n" * 9, "\ufeff",
        "\u200b", "\u2028", "٣٤٥", "ﬁ", "ǅ", "ß", "İ", "\x00", "\x1c", "\x85", "' s", "'S", "'ſ",
    ]  # fmt: skip
    for _ in range(n):
        parts = []
        for _ in range(chance.randrange(1, 9)):
            if chance.random() < 0.4:
                parts.append(chance.choice(traps))
            else:
                low, high = chance.choice(blocks)
                parts += (chr(chance.randint(low, high)) for _ in range(chance.randrange(9)))
            parts.append(chance.choice(["", "", " ", "  ", "\n", "\t", " \n "]))
        yield "".join(parts)


BYTES = Tokenizer({bytes([byte]): byte for byte in range(256)})  # the smallest tokenizer there is
V = BYTES.vocab_size
SMALL = Config(60, 4, 6, 2, V, 7, 1e-5, 500000.0, 0.48)
PTH = "consolidated.00.pth"


def with_weights(change):
    """Return a function that saves a checkpoint's weights again after `change(weights)`."""

    def spoil(folder):
        weights = torch.load(folder / PTH, weights_only=True)
        torch.save(change(weights) or weights, folder / PTH)

    return spoil


def with_params(**changes):
    def spoil(folder):
        params = json.loads((folder / "params.json").read_text()) | changes
        (folder / "params.json").write_text(json.dumps(params))

    return spoil


def with_bytes(name, change):
    def spoil(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return spoil


def write_shards(folder, weights, n_files):
    """Split weights by the list of names with which Meta's `reshard_mp` joins them, and save them.

    A matrix that cannot be split evenly loses its last rows or columns.
    """
    from llama_models.checkpoint import _WEIGHT_ROW_KEY

    for i in range(n_files):
        shard = {}
        for name, tensor in weights.items():
            split = int(any(key in name for key in _WEIGHT_ROW_KEY))
            whole = tensor.dim() == 1
            part = tensor if whole else tensor.split(tensor.shape[split] // n_files, split)[i]
            shard[name] = part.clone()
        torch.save(shard, folder / f"consolidated.{i:02d}.pth")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SCALED_DOWN = {  # ratios of heads, rule of F, tying and scaling of RoPE as in the released model
    "Llama-3-8B": Config(96, 3, 8, 2, V, 24, 1e-5, 500000.0, 1.3),
    "Llama-3.1-8B": Config(80, 2, 8, 2, V, 32, 1e-5, 500000.0, 1.3, RopeScaling(8.0)),
    "Llama-3.2-1B": Config(112, 2, 8, 2, V, 9, 1e-5, 500000.0, 1.5, RopeScaling(32.0), True),
    "Llama-3.2-3B": Config(60, 4, 6, 2, V, 7, 1e-5, 500000.0, 1.0, RopeScaling(32.0), True),
}
SAMPLE = (
    "Once upon a time the answer to the ultimate question of life, the universe and everything was "
    "42. Then 1234 people asked again, and nobody knew why: the café was closed. "
) * 9
HUGGING_FACES = {  # the oracle: Meta's name -> Hugging Face's
    "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head",
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def permuted(w, n_heads):
    """`permute` as transformers' convert_llama_weights_to_hf.py has it: half-split rows."""
    rows, columns = w.shape
    return (w.view(n_heads, rows // n_heads // 2, 2, columns).transpose(1, 2)
            .reshape(rows, columns))  # fmt: skip


def halves(weights, config, permute=permuted):
    """{Meta's name: tensor} -> {Hugging Face's name: tensor}; a tied output is left out."""
    state = {}
    for name, tensor in weights.items():
        layer, inside = re.fullmatch(r"(layers\.\d+\.)?(.*)\.weight", name).groups()
        if inside in ("attention.wq", "attention.wk"):
            tensor = permute(tensor, config.n_heads if inside[-1] == "q" else config.n_kv_heads)
        if name != "output.weight" or not config.tied_output:
            name = ("model." + layer if layer else "") + HUGGING_FACES[inside] + ".weight"
            state[name] = tensor.clone().contiguous()
    return state


def config_json(config):
    """`config.json` as transformers up to 4 wrote it, and as Llama's repositories have it."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu",
        "bos_token_id": V - 256, "eos_token_id": V - 255, "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim, "max_position_embeddings": config.context_length,
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers, "num_key_value_heads": config.n_kv_heads,
        "pretraining_tp": 1, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
        "rope_scaling": scaling and {
            "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor, "rope_type": "llama3",
            "original_max_position_embeddings": scaling.original_length,
        },
        "tie_word_embeddings": config.tied_output, "vocab_size": config.vocab_size,
    }  # fmt: skip


def transformers_model(config, state):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config_json(config))).eval()
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= ({"lm_head.weight"} if config.tied_output else set())
    model.tie_weights()
    return model


def write(folder, config, weights, shard="20KB", permute=permuted):
    """Write a checkpoint with `transformers` itself, and tokenizer.model beside it."""
    save(folder, {}, config, BYTES)
    (folder / PTH).unlink(), (folder / "params.json").unlink()
    model = transformers_model(config, halves(weights, config, permute))
    model.to(weights["norm.weight"].dtype).save_pretrained(folder, max_shard_size=shard)


def metas_weights(config, dtype=torch.float32, seed=0):
    weights = make_weights(config, dtype, seed)
    if config.tied_output:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def hugging_faces_names(release):
    """The special tokens of meta-llama's repositories, as in transformers' conversion script."""
    if release == "3":
        return special_tokens("3")
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(248)]
    return [
        "<|begin_of_text|>", "<|end_of_text|>", *reserved[:2], "<|finetune_right_pad_id|>",
        reserved[2], "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
        "<|python_tag|>", *reserved[3:],
    ]  # fmt: skip


def llama_3s_tokenizer(path, release="3"):
    """tokenizer.model -> a `tokenizers.Tokenizer`, by transformers' own converter."""
    import tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    names = hugging_faces_names(release)
    made = TikTokenConverter(str(path), SPLIT_PATTERN, extra_special_tokens=names).converted()
    bos = made.token_to_id("<|begin_of_text|>")
    template = tokenizers.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    made.post_processor = tokenizers.processors.Sequence([made.post_processor, template])
    return made


def byte_level_tokenizer():
    """Like SmolLM2's: special tokens first, single digits, GPT-2's split pattern, no BOS."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator([SAMPLE], trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    ))  # fmt: skip
    return made


def refused(folder, says, capsys):
    """Check that loading and running a folder gives one `InputError`, and the program one message.

    Returns what the program printed on standard error.
    """
    with pytest.raises(InputError) as error:
        weights, config, _ = load(folder)
        list(generate(weights, [1, 2, 3], config, max_new=2))
    assert says in str(error.value)
    assert main(["--checkpoint", str(folder), "ab"]) == 2
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown
    assert sum(1 + len(line) // 80 for line in shown.splitlines()) <= 24  # one screen
    return shown


def llama_cpp(path):
    """A GGUF file -> a function: ids -> [(token, log-probability)] of llama.cpp's ten likeliest.

    Keys and values are cached in float32, attention is computed in steps: the rounding that is left
    is that of the weights' type.
    """
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = 512, 1, False, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)

    def complete(prompt, n_tokens=1):
        """prompt: ids, or a text. Returns (the ten likeliest at the first place, the text)."""
        answer = server.handle_completions({
            "prompt": prompt, "n_predict": n_tokens, "temperature": 0.0, "n_probs": 10,
            "cache_prompt": False,
        })["choices"][0]  # fmt: skip
        first = answer["logprobs"]["content"][0]["top_logprobs"]
        return [(entry["id"], entry["logprob"]) for entry in first], answer["text"]

    return complete


def furthest(theirs, weights, tokens, config):
    """The largest difference of log-probabilities among llama.cpp's ten, by our logit scale."""
    logits = forward(weights, torch.as_tensor(tokens), config)[-1].double()
    ours = torch.log_softmax(logits, -1)
    worst = max(abs(float(ours[token]) - logprob) for token, logprob in theirs)
    return worst / float(logits.abs().max())
