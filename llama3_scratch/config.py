"""Sizes and names: the architecture of Llama 3 as a table.

Each size has one letter, here and in every docstring, comment, equation and figure:

    T  tokens now being computed (queries)          N  query heads
    S  tokens attended to (keys): cached + T        K  key/value heads
    C  positions that a cache has room for          G  query heads per key/value head, N/K
    V  vocabulary                                   H  head size, D/N
    L  layers                                       P  rotated pairs, H/2
    D  width of the residual stream                 F  feed-forward width
"""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from llama3_scratch.errors import InputError, read_file, require, short


def _require_positive(name, value, kinds):
    kind = "a positive whole number" if kinds is int else "a positive number"
    most = 2**63 if isinstance(value, int) else 1e30  # a whole number has to fit into 64 bits
    right = isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < most
    require(right, f"{name} is {short(value)}: expected {kind}.")


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later lower RoPE's low frequencies (`apply_scaling` in Meta's model.py).

    Wavelengths are in tokens. Those under `original_length / high_freq_factor` stay as they are,
    those over `original_length / low_freq_factor` become `factor` times longer, and in between the
    frequencies are interpolated.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        for name, value in asdict(self).items():
            _require_positive(f"rope_scaling.{name}", value, (int, float))
        require(
            self.low_freq_factor < self.high_freq_factor,
            f"rope_scaling.low_freq_factor is {self.low_freq_factor}: expected less than "
            f"high_freq_factor, which is {self.high_freq_factor}.",
        )


@dataclass(frozen=True)
class Config:
    """The sizes of one model, under Meta's names (`params.json`, `llama3/args.py`).

    The last three fields are not in Meta's `params.json`: how RoPE is scaled, whether the output
    matrix is the embedding table, and the number of positions that a model was trained for if it
    is neither Llama 3 nor 3.1. Raises `InputError` for values that are impossible or inconsistent.
    """

    dim: int  # D
    n_layers: int  # L
    n_heads: int  # N
    n_kv_heads: int  # K
    vocab_size: int  # V
    multiple_of: int  # F is rounded up to a multiple of this
    norm_eps: float
    rope_theta: float
    ffn_dim_multiplier: float | None = None
    rope_scaling: RopeScaling | None = None
    tied_output: bool = False
    trained_length: int | None = None

    def __post_init__(self):
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of"):
            _require_positive(name, getattr(self, name), int)
        for name in ("norm_eps", "rope_theta", "ffn_dim_multiplier"):
            if name != "ffn_dim_multiplier" or self.ffn_dim_multiplier is not None:
                _require_positive(name, getattr(self, name), (int, float))
        if self.trained_length is not None:
            _require_positive("trained_length", self.trained_length, int)
        tied, N, K = self.tied_output, self.n_heads, self.n_kv_heads
        scaling = self.rope_scaling
        require(
            scaling is None or isinstance(scaling, RopeScaling),
            f"rope_scaling is {short(scaling)}: expected a RopeScaling.",
        )
        require(isinstance(tied, bool), f"tied_output is {short(tied)}: expected true or false.")
        require(N % K == 0, f"n_heads is {N}: expected a multiple of n_kv_heads, which is {K}.")
        require(
            self.dim % (2 * N) == 0,
            f"dim is {self.dim}: expected a multiple of 2 x n_heads = {2 * N}, so that all heads "
            "have the same size and split into pairs for RoPE.",
        )
        require(
            self.ffn_dim > 0,
            f"F (from dim, ffn_dim_multiplier and multiple_of) is {self.ffn_dim}: "
            "expected 1 or more.",
        )

    @property
    def head_dim(self) -> int:
        """H, the size of one head."""
        return self.dim // self.n_heads

    @property
    def ffn_dim(self) -> int:
        """F, the width of the feed-forward layer (`FeedForward.__init__` in Meta's model.py)."""
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return self.multiple_of * math.ceil(width / self.multiple_of)

    @property
    def context_length(self) -> int:
        """Positions that the model was trained for: 8192, or 131072 from 3.1 on (model cards)."""
        return self.trained_length or (8192 if self.rope_scaling is None else 131072)

    @property
    def sizes(self) -> dict[str, int]:
        """This model's {letter: number}; T, S and C depend on the input, not on the model."""
        N, K, H = self.n_heads, self.n_kv_heads, self.head_dim
        model = {"V": self.vocab_size, "L": self.n_layers, "D": self.dim, "F": self.ffn_dim}
        return model | {"N": N, "K": K, "G": N // K, "H": H, "P": H // 2}

    @property
    def n_parameters(self) -> int:
        """The number of trained values; a tied output matrix is counted once."""
        shapes = weight_shapes(replace(self, n_layers=1))  # files may claim any number of layers
        layer = sum(math.prod(shapes[name]) for name in shapes if name.startswith("layers."))
        table = self.vocab_size * self.dim
        return self.n_layers * layer + self.dim + (1 if self.tied_output else 2) * table

    @classmethod
    def from_params(cls, path: str | Path) -> "Config":
        """Read a `params.json`. Raises `InputError` if a key is unknown or missing, or a value bad.

        `use_scaled_rope: true` says that RoPE is scaled, but not by how much. Meta's reference
        code always uses 8, which is right for 3.1; but 3.2-1B and 3.2-3B were trained with 32 (see
        their `config.json`), so these two are recognised by their sizes. The keys `rope_scaling`,
        `tied_output` and `trained_length` are this project's own; `to_params` writes those that
        are set.
        """
        params = read_json(Path(path))
        names = {field.name for field in fields(cls)}
        own = {"rope_scaling", "tied_output", "trained_length"}
        optional = own | {"ffn_dim_multiplier", "use_scaled_rope"}
        faults = [f"\n  unknown key {short(key)}" for key in params if key not in names | optional]
        faults += [f"\n  missing key {key!r}" for key in sorted(names - optional - params.keys())]
        require(
            not faults,
            f"{path} is not the params.json of a Llama 3 text model:{''.join(faults[:16])}",
        )
        scaled, scaling = params.pop("use_scaled_rope", False), params.pop("rope_scaling", None)
        try:
            require(
                isinstance(scaled, bool),
                f"use_scaled_rope is {short(scaled)}: expected true or false.",
            )
            config = cls(**params)
            if scaling is not None:
                names = [field.name for field in fields(RopeScaling)]
                require(
                    isinstance(scaling, dict) and {"factor"} <= scaling.keys() <= set(names),
                    f"rope_scaling is {short(scaling)}: expected an object with "
                    f"{', '.join(names)}.",
                )
                return replace(config, rope_scaling=RopeScaling(**scaling))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if not scaled:
            return config
        for preset in PRESETS.values():
            if preset.rope_scaling and preset.sizes == config.sizes:
                tied, scaling = preset.tied_output, preset.rope_scaling
                return replace(config, rope_scaling=scaling, tied_output=tied)
        return replace(config, rope_scaling=RopeScaling(factor=8.0))

    def to_params(self) -> dict:
        """Return the content of a `params.json` from which `from_params` makes the same config."""
        params = {key: value for key, value in asdict(self).items() if value not in (None, False)}
        return params | ({"use_scaled_rope": True} if self.rope_scaling else {})


def weight_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the whole architecture: {name in Meta's checkpoint: shape}, in Meta's order."""
    V, D, F = config.vocab_size, config.dim, config.ffn_dim
    NH, KH = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    one_layer = {
        "attention.wq.weight": (NH, D),
        "attention.wk.weight": (KH, D),
        "attention.wv.weight": (KH, D),
        "attention.wo.weight": (D, NH),
        "feed_forward.w1.weight": (F, D),
        "feed_forward.w3.weight": (F, D),
        "feed_forward.w2.weight": (D, F),
        "attention_norm.weight": (D,),
        "ffn_norm.weight": (D,),
    }
    shapes = {"tok_embeddings.weight": (V, D)}
    for i in range(config.n_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in one_layer.items()}
    return shapes | {"norm.weight": (D,), "output.weight": (V, D)}


def without_doubles(pairs):
    """Return a JSON object's pairs as a dictionary. Raises ValueError if a key is repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, times = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {short(name)} occurs {times} times")
    return found


def read_json(path, most=10**7):
    """Read a file that holds one JSON object, of at most `most` bytes. Raises `InputError`."""
    content = read_file(path, most)
    try:
        params = json.loads(content.decode("utf-8-sig"), object_pairs_hook=without_doubles)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}). Download it again.") from None
    require(isinstance(params, dict), f"{path} holds {str(params)[:40]!r}: expected an object.")
    return params


def _llama(dim, n_layers, n_heads, multiple_of, ffn_dim_multiplier, factor=None, tied=False):
    """Return the config of a released text model, from the fields in which the models differ."""
    return Config(
        dim, n_layers, n_heads, 8, 128256, multiple_of, 1e-5, 500000.0, ffn_dim_multiplier,
        factor and RopeScaling(factor), tied,
    )  # fmt: skip


# Sizes as in Meta's `sku_list.py` (package llama-models); factors as in the models' `config.json`.
PRESETS = {
    "Llama-3-8B": _llama(4096, 32, 32, 1024, 1.3),
    "Llama-3-70B": _llama(8192, 80, 64, 4096, 1.3),
    "Llama-3.1-8B": _llama(4096, 32, 32, 1024, 1.3, factor=8.0),
    "Llama-3.1-70B": _llama(8192, 80, 64, 4096, 1.3, factor=8.0),
    "Llama-3.1-405B": _llama(16384, 126, 128, 4096, 1.2, factor=8.0),
    "Llama-3.2-1B": _llama(2048, 16, 32, 256, 1.5, factor=32.0, tied=True),
    "Llama-3.2-3B": _llama(3072, 28, 24, 256, 1.0, factor=32.0, tied=True),
}
