"""Hugging Face's files -> Meta's names, row order and settings; nothing of them is executed.

A folder, or a repository's snapshot, has `config.json`, the weights in `model.safetensors` or in
several files that `model.safetensors.index.json` lists, and `tokenizer.json`. They hold the same
numbers as Meta's files under other names, with one difference: the rows of wq and wk stand in
another order, because Hugging Face rotates element i with i + P where Meta rotates neighbours
(`permute` in transformers' convert_llama_weights_to_hf.py). It is undone here, and nowhere else.
"""

import json
import operator
import re
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from llama3_scratch.config import (
    PRESETS,
    Config,
    InputError,
    RopeScaling,
    read_json,
    require,
    short,
    weight_shapes,
    whole,
    without_doubles,
)
from llama3_scratch.tokenizer import N_SPECIAL, SPLIT_PATTERN, Tokenizer, special_tokens

WANTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
          "model.safetensors", "model-*.safetensors", "model.safetensors.index.json")  # fmt: skip
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LONGEST_HEADER = 10**7  # bytes; the 405B's 1,138 tensors take under 200,000
TYPES = ("F32", "F16", "BF16")
BAD_FILE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
            RuntimeError)  # fmt: skip
NAMES = {  # Meta's name: Hugging Face's, outside the layers or inside one
    "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head",
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
FIXED = {  # what our forward pass does; a file that says otherwise is of another architecture
    "model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "quantization_config": None, "partial_rotary_factor": 1.0,
}  # fmt: skip


def fetch(repository):
    """A repository's id, `owner/name` -> the folder of its files, fetched unless they are there.

    Raises `InputError` that says what to do: for gated models which page to visit, and where the
    token goes. What was fetched when it is interrupted is kept apart and gone on from.
    """
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise InputError("pip install huggingface_hub: it fetches Hugging Face's files.") from None
    page = f"https://huggingface.co/{repository}"
    try:
        return Path(snapshot_download(repository, allow_patterns=WANTED))
    except errors.GatedRepoError:
        raise InputError(
            f"{repository} is gated: ask for access on {page}, make a token on "
            "https://huggingface.co/settings/tokens and put it into the environment variable "
            "HF_TOKEN (or run: hf auth login)."
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no folder {repository!r} here and no repository {page}, or it is private: "
            "check the spelling, or put a token that may read it into HF_TOKEN."
        ) from None
    except Exception as error:  # the network's errors are those of several other packages
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"there is no folder {repository!r} here, and {page} could not be fetched ({reason}). "
            "Run it again when the network is back: what is complete is kept."
        ) from None


def read_config(folder):
    """`config.json` -> Config. Raises `InputError` that names what our forward pass does not do."""
    path = Path(folder) / "config.json"
    params = read_json(path)
    rope = {"rope_theta": params.get("rope_theta", 10000.0)}
    for key in ("rope_scaling", "rope_parameters"):  # transformers up to 4, and from 5 on
        entry = params.get(key) or {}
        require(isinstance(entry, dict), f"{path}: {key} is {short(entry)}: expected an object.")
        rope |= entry
    kind, said = rope.get("rope_type", rope.get("type", "default")), rope | params
    faults = [f"\n  {key} is {short(said[key])}: expected {right!r}"
              for key, right in FIXED.items() if said.get(key, right) != right]  # fmt: skip
    found = params.get("architectures") or ["LlamaForCausalLM"]
    if not isinstance(found, list) or "LlamaForCausalLM" not in found:
        faults.append(f"\n  architectures is {short(found)}: expected ['LlamaForCausalLM']")
    if kind not in ("default", "llama3"):
        faults.append(f"\n  the type of RoPE is {short(kind)}: expected 'default' or 'llama3'")
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
              "intermediate_size", "rms_norm_eps")  # fmt: skip
    faults += [f"\n  missing key {key!r}" for key in needed if key not in params]
    require(not faults, f"{path} is not of a model that is computed here:{''.join(faults)}")
    D, N, F = (params[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size"))
    for key, value in (("hidden_size", D), ("num_attention_heads", N), ("intermediate_size", F)):
        right = isinstance(value, int) and 0 < value < 2**31
        require(right, f"{path}: {key} is {short(value)}: expected a positive whole number.")
    H, K = params.get("head_dim"), params.get("num_key_value_heads")
    fits = H is None or isinstance(H, int) and H * N == D
    require(fits, f"{path}: head_dim is {short(H)}: expected hidden_size / heads, {D} / {N}.")
    try:
        scaling = RopeScaling(
            rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        ) if kind == "llama3" else None  # fmt: skip
        config = Config(
            D, params["num_hidden_layers"], N, N if K is None else K,
            params["vocab_size"], **_feed_forward(D, F), norm_eps=params["rms_norm_eps"],
            rope_theta=rope["rope_theta"], rope_scaling=scaling,
            tied_output=params.get("tie_word_embeddings", False),
        )  # fmt: skip
        length = params.get("max_position_embeddings", config.context_length)
        if length != config.context_length:
            config = replace(config, trained_length=length)
    except KeyError as error:
        raise InputError(f"{path}: the scaling of RoPE has no {error}.") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config


def _feed_forward(D, F):
    """What Meta's `params.json` says in place of F, D: a released model's, or F itself."""
    for preset in PRESETS.values():
        if (preset.dim, preset.ffn_dim) == (D, F):
            return {key: getattr(preset, key) for key in ("multiple_of", "ffn_dim_multiplier")}
    return {"multiple_of": F, "ffn_dim_multiplier": min(1.0, F / int(8 * D / 3))}


def read_weights(folder, config):
    """The safetensors of a folder -> {Meta's name: tensor}, memory-mapped.

    No tensor takes memory of its own, here; see `in_metas_order`. Raises `InputError`.
    """
    folder = Path(folder)
    listed = _listed(folder)
    names = {hugging_faces_name(name): name for name in weight_shapes(config)}
    found, where = {}, {}
    for file in sorted(set(listed.values())) or [SINGLE]:
        for name, tensor in _read_file(folder / file).items():
            twice = f"{folder}: {short(name)} stands in {where.get(name)} and {file}."
            require(name not in where, twice)
            wrong = listed and listed.get(name) != file
            require(not wrong, f"{folder / file} has {short(name)}: {INDEX} does not say so.")
            where[name] = file
            if not name.endswith("rotary_emb.inv_freq"):  # old files have it; ours is computed
                # Meta's own name would stand for rows in another order: it is as strange as any
                found[names.get(name, f"{name} of {file}")] = tensor
    missing = [short(name) for name in listed if name not in where]
    require(not missing, f"{folder}: {INDEX} names {''.join(missing[:1])}: the file is without.")
    return found


def in_metas_order(found, config):
    """{Meta's name: tensor as Hugging Face has it} -> a function: name -> tensor as Meta has it.

    What is asked for twice is kept: a loop over tokens does not wait for it again, and whoever goes
    through the weights once (the first token, a copy to a GPU, a check) does not fill the memory.
    """
    asked, kept = set(), {}

    def tensor(name):
        if name in kept or not name.endswith(("attention.wq.weight", "attention.wk.weight")):
            return kept.get(name, found[name])
        halves = found[name].unflatten(0, (-1, 2, config.head_dim // 2))  # [N, 2, P, D]
        turned = halves.transpose(1, 2).reshape(found[name].shape)  # pairs of neighbours: [N H, D]
        if name in asked:
            kept[name] = turned
        asked.add(name)
        return turned

    return tensor


def hugging_faces_name(name):
    """`layers.3.feed_forward.w3.weight` -> `model.layers.3.mlp.up_proj.weight`."""
    layer, inside = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", name).groups()
    return f"model.{layer}{NAMES[inside]}.weight" if layer else f"{NAMES[inside]}.weight"


def _listed(folder):
    """The index as {name: file}, empty for a single file."""
    path = folder / INDEX
    if not path.exists():
        others = sorted(file.name for file in folder.glob("*.bin"))
        require(
            (folder / SINGLE).exists(),
            f"{folder}: expected the weights in {SINGLE}, or several files and {INDEX}"
            + (f"; {others[0]} is a pickle, and these are not read." if others else "."),
        )
        return {}
    listed = read_json(path).get("weight_map")
    plain = isinstance(listed, dict) and listed and all(
        isinstance(file, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,200}\.safetensors", file)
        for file in listed.values()
    )  # fmt: skip
    require(plain, f"{path} has no weight_map from names to .safetensors files beside it.")
    missing = sorted({file for file in listed.values() if not (folder / file).exists()})
    require(
        not missing,
        f"{path} names {len(missing)} files that are missing, {', '.join(missing[:3])}: the "
        "download is not complete. Fetch them too.",
    )
    return listed


def _read_file(path):
    """One .safetensors -> {Hugging Face's name: tensor}, memory-mapped."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LONGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            header = json.loads(file.read(length), object_pairs_hook=without_doubles)
        kinds = {name: header[name]["dtype"] for name in header if name != "__metadata__"}
        odd = [f"{name[:99]} is {short(kind)}" for name, kind in kinds.items() if kind not in TYPES]
        require(
            not odd,
            f"{path}: {''.join(odd[:1])}, and so are {len(odd) - 1} others; expected one of "
            f"{', '.join(TYPES)}. Quantized weights are not read: get the model as it was "
            "released.",
        )
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in kinds}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except BAD_FILE as error:
        reason, size = str(error).strip().split("\n")[0][:200], path.stat().st_size
        if "Cannot allocate memory" in reason:
            raise InputError(
                f"{path} has {size:,} bytes, more than this machine's memory and swap, and Linux "
                "will not map it then. Add swap, or allow it: sysctl vm.overcommit_memory=1."
            ) from None
        raise InputError(
            f"{path} is no whole file of safetensors: {size:,} bytes ({reason}). Is it the pointer "
            "to a download, or an unfinished one? Download it again."
        ) from None


# --- Tokenizer ------------------------------------------------------------------------------------


CUT = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN},
       "behavior": "Isolated", "invert": False}  # fmt: skip
NAMED = {  # Llama 3's special tokens on Hugging Face; where Meta has others, they are reserved
    release: {i: name for i, name in enumerate(special_tokens(release))
              if not re.match(r"<\|(reserved|step_id|image)", name)}
    for release in ("3", "3.1")
}  # fmt: skip


def read_tokenizer(folder):
    """`tokenizer.json` -> Llama 3's `Tokenizer` where it is that one, else an `OtherTokenizer`."""
    path = Path(folder) / "tokenizer.json"
    content = read_json(path)
    try:
        vocabulary = content["model"]["vocab"].items()
        special = {entry["id"]: str(entry["content"]) for entry in content["added_tokens"]}
        llama_3s = CUT in content["pre_tokenizer"]["pretokenizers"]
    except (KeyError, TypeError, AttributeError):
        llama_3s = False
    if not llama_3s:
        return OtherTokenizer(folder)
    byte_of, ranks = _byte_alphabet(), {}
    try:
        for token, rank in sorted(vocabulary, key=operator.itemgetter(1)):
            right = type(rank) is int and rank == len(ranks)
            require(right, f"{path}: a token has the id {short(rank)}: expected {len(ranks)}.")
            ranks[bytes(byte_of[character] for character in token)] = rank
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: a token or its id is not Llama 3's ({error}).") from None
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    require(not missing, f"{path}: {missing} of the 256 single bytes are no tokens.")
    ids = {name: len(ranks) + i for names in NAMED.values() for i, name in names.items()}
    for token, name in special.items():
        right = ids.get(name, token)
        require(token == right, f"{path}: {name} has the id {short(token)}: expected {right}.")
    for release, names in NAMED.items():
        expected = {len(ranks) + i: names.get(i, "<|reserved") for i in range(N_SPECIAL)}
        if special.keys() == expected.keys() and all(
            special[token].startswith(name) for token, name in expected.items()
        ):
            return Tokenizer(ranks, release)
    return OtherTokenizer(folder)  # some fine-tuned models name and stop at tokens of their own


def _byte_alphabet():
    """{character: byte}: how byte-level BPE writes bytes as text (GPT-2's `bytes_to_unicode`).

    Printable characters stand for themselves, the 68 other bytes for the characters from 256 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (byte for byte in range(256) if byte not in shown)
    return {chr(b): b for b in shown} | {chr(256 + i): byte for i, byte in enumerate(rest)}


class OtherTokenizer:
    """Another model's tokenizer, run by the package `tokenizers`, with what `generate` needs.

    What stands before a text (`bos`) is what its own file says; there is no chat format.
    """

    def __init__(self, folder):
        try:
            import tokenizers
        except ImportError:
            raise InputError("pip install tokenizers: it runs this model's tokenizer.") from None
        self._path = path = Path(folder) / "tokenizer.json"
        self._inner = self._run(tokenizers.Tokenizer.from_file, str(path))
        self._inner.no_padding(), self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # a special token's name in a text is text
        ids = self._inner.get_vocab().values()
        self.vocab_size, self.special, stops = max(ids, default=-1) + 1, {}, []
        for settings in (path.with_name("config.json"), path.with_name("generation_config.json")):
            if settings.exists():
                stop = read_json(settings).get("eos_token_id")
                stops += stop if isinstance(stop, list) else [stop]
        self.stop_ids = frozenset(whole("eos_token_id", stop) for stop in stops if stop is not None)

    def _run(self, function, *arguments, **settings):
        try:
            return function(*arguments, **settings)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # no kind of its own, and its panics are no Exception
            text = f"{self._path} is no tokenizer that works: {str(error)[:200]}"
            raise InputError(text) from None

    def encode(self, text, bos=True):
        """Text -> ids, with what the tokenizer puts around a text unless `bos` is false."""
        require(isinstance(text, str), f"the text is a {type(text).__name__}: expected a str.")
        return self._run(self._inner.encode, text, add_special_tokens=bos).ids

    def decode(self, ids):
        """Ids -> text."""
        return self._run(self._inner.decode, list(map(int, ids)), skip_special_tokens=False)

    def stream(self, ids):
        """Ids, one at a time -> text that continues a text, as soon as it is complete.

        At the beginning of a text some tokenizers drop the space before a word, so here is one.
        """
        seen = self.encode("a", bos=False)
        shown = len(self.decode(seen))
        for token in ids:
            seen.append(token)
            text = self.decode(seen)
            if text.endswith("\ufffd"):  # the first bytes of a character
                yield ""
            else:
                yield text[shown:]
                shown = len(text)
        yield self.decode(seen)[shown:]

    def encode_chat(self, messages):
        """There is none: raises `InputError`."""
        raise InputError("this model's tokenizer is not Llama 3's: its chat format is not known.")
