"""The other programs of speed.py: transformers, eager and compiled, and llama.cpp.

Each is an object with `prompt(tokens)`, `fill(positions, batch)` and `token(positions)`; the first
and the last may return the seconds that count, otherwise the caller's clock does.
"""

import json
import random
import urllib.request
from pathlib import Path
from unittest import mock

import torch

from llama3_scratch import Tokenizer
from llama3_scratch.checkpoint import export
from llama3_scratch.checkpoint.huggingface import hugging_faces_name
from llama3_scratch.checkpoint.source import Checkpoint


class Transformers:
    """transformers with PyTorch's fused attention, on the same tensors."""

    def __init__(self, weights, config):
        from transformers import LlamaConfig, LlamaForCausalLM

        self.config, self.shape = config, LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.ffn_dim, max_position_embeddings=131072,
            attn_implementation="sdpa", dtype=torch.bfloat16, tie_word_embeddings=False,
        )  # fmt: skip
        with torch.device("meta"):
            self.model = LlamaForCausalLM(self.shape)
        state = {hugging_faces_name(name): tensor for name, tensor in weights.items()}
        self.model.load_state_dict(state, assign=True)
        self.model.model.rotary_emb = type(self.model.model.rotary_emb)(self.shape)
        self.model.eval()

    def prompt(self, tokens):
        self.model(tokens[None], use_cache=True, logits_to_keep=1)

    def drawn(self, positions, batch):
        """Random keys and values of one layer after another."""
        size = 2, batch, self.config.n_kv_heads, positions, self.config.head_dim
        for _ in range(self.config.n_layers):
            yield torch.empty(size, dtype=torch.bfloat16).normal_()

    def fill(self, positions, batch):
        from transformers import DynamicCache

        self.cached, self.tokens = DynamicCache(), torch.ones(batch, 1, dtype=torch.long)
        for i, (keys, values) in enumerate(self.drawn(positions, batch)):
            self.cached.update(keys, values, i)

    def token(self, positions):
        self.model(self.tokens, past_key_values=self.cached, use_cache=True)
        self.cached.crop(-1)


class Compiled(Transformers):
    """The same by torch.compile, with the cache of a fixed size that transformers has for it."""

    prompt = None  # a prompt's time is its products', which compiling leaves as they are

    def __init__(self, weights, config):
        super().__init__(weights, config)
        self.model = torch.compile(self.model, dynamic=False)

    def fill(self, positions, batch):
        from transformers import StaticCache

        self.cached = StaticCache(config=self.shape, max_cache_len=positions + 1)
        self.tokens = torch.ones(batch, 1, dtype=torch.long)
        layers = zip(self.cached.layers, self.drawn(positions, batch), strict=True)
        for layer, (keys, values) in layers:
            layer.lazy_initialization(keys, values)
            layer.keys[:, :, :positions], layer.values[:, :, :positions] = keys, values
        self.token(positions)  # compiles

    def token(self, positions):
        for layer in self.cached.layers:
            layer.cumulative_length.fill_(positions)
        self.model(self.tokens, past_key_values=self.cached, use_cache=True)


class LlamaCpp:
    """llama.cpp as the package xllamacpp brings it, on a file that this package exports.

    It keeps keys and values in float16. The seconds are those that its server says.
    """

    def __init__(self, weights, config, kind, folder, longest):
        import xllamacpp

        self.longest, self.stored = longest, Path(folder) / f"{longest}.cache"
        settings = xllamacpp.CommonParams()
        settings.model.path = str(exported(weights, config, kind, Path(folder)))
        settings.n_ctx, settings.n_parallel, settings.verbosity = longest + 64, 1, 0
        settings.fit_params, settings.cache_ram_mib, settings.n_ctx_checkpoints = False, 0, 0
        threads = torch.get_num_threads()
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.slot_save_path = f"{folder}/"
        self.server = xllamacpp.Server(settings)
        ids = random.Random(0)
        self.ids = [ids.randrange(config.vocab_size * 3 // 4) for _ in range(longest + 1)]

    def ask(self, ids, cached):
        """Complete ids by one token -> seconds of the forward pass of those that are not cached."""
        given = {"prompt": ids, "n_predict": 1, "temperature": 0.0, "cache_prompt": cached}
        return self.server.handle_completions(given)["timings"]["prompt_ms"] / 1000

    def prompt(self, tokens):
        return self.ask(tokens.tolist(), False)

    def fill(self, positions, batch):
        """Compute the longest cache once, and store it; shorter ones are its beginning."""
        if self.stored.exists():
            return self.slot("restore")
        self.ask(self.ids[: self.longest], True)
        self.slot("save")

    def token(self, positions):
        return self.ask(self.ids[: positions + 1], True)

    def slot(self, action):
        request = urllib.request.Request(
            f"{self.server.listening_address}/slots/0?action={action}",
            json.dumps({"filename": self.stored.name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()


def exported(weights, config, kind, folder):
    """-> the path of a GGUF file of a type, written by this package's export if it is not there."""
    import llama_models
    from gguf import LlamaFileType

    path = folder / f"{kind}.gguf"
    if not path.exists():
        metas = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
        stored = Checkpoint(weights, config, Tokenizer.from_file(metas))
        types = {"FILE_TYPES": export.FILE_TYPES | {"Q4_0": LlamaFileType.MOSTLY_Q4_0}}
        if kind == "Q4_0":  # the blocks of `gguf`, as for Q8_0
            types["PACKED"] = kind
        with mock.patch.multiple(export, **types):
            export.export(stored, "gguf", path, kind)
    return path
