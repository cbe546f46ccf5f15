"""Seconds from the start of a process to the prompt's first logits, and the memory it took.

    python benchmarks/first_token.py [--preset Llama-3.2-1B] [--directory DIR] [--repeats 3]

Writes the same random bfloat16 weights of a released model's names, shapes and size twice, in
Meta's layout and in Hugging Face's (the 8B: 2 x 16 GB), and runs the book's prompt through them in
fresh processes, one for each repeat: this package on either layout, `transformers` on its own, and
Meta's reference on Meta's. Each also reads its tokenizer. First with the files' pages in memory
("warm"), then with them dropped ("cold", by posix_fadvise). Prints the medians, and the largest
anonymous memory seen; pages of files are not in it. The written files are deleted, unless
--directory names a folder for them, in which they are used again. For Linux.
"""

import argparse
import itertools
import json
import math
import mmap
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from limited import drop, peaks

SHARD = 5 * 10**9  # bytes: the largest file that transformers writes


# --- The files ------------------------------------------------------------------------------------


def write_metas(folder, _, config):
    """Write random weights through the page cache: never more than one tensor in memory."""
    import llama_models
    import torch

    from llama3_scratch import weight_shapes

    metas = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    shutil.copy(metas, folder / "tokenizer.model")
    ours = {"rope_scaling", "tied_output"}  # keys that Meta's files do not have
    params = {key: value for key, value in config.to_params().items() if key not in ours}
    (folder / "params.json").write_text(json.dumps(params))
    path = folder / "consolidated.00.pth"
    untouched = {
        name: torch.empty(shape, dtype=torch.bfloat16)
        for name, shape in weight_shapes(config).items()
    }
    if config.tied_output:
        untouched["output.weight"] = untouched["tok_embeddings.weight"]
    with torch.serialization.skip_data():  # writes the names and leaves room for the values
        torch.save(untouched, path)
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in torch.load(path, mmap=True, weights_only=True).items():
        if tensor.dim() == 1:
            tensor.fill_(1)
        elif name != "output.weight" or not config.tied_output:
            tensor.normal_(0, 1 / math.sqrt(tensor.shape[1]), generator=generator)


def write_hugging_faces(folder, metas, config):
    """Write the numbers of Meta's folder in transformers' layout, one tensor at a time."""
    import torch
    from tokenizers.processors import Sequence, TemplateProcessing
    from transformers import LlamaConfig
    from transformers.convert_slow_tokenizer import TikTokenConverter

    from llama3_scratch.checkpoint.huggingface import INDEX, SINGLE, hugging_faces_name
    from llama3_scratch.checkpoint.tokenizers import NAMED
    from llama3_scratch.tokenizer import SPLIT_PATTERN

    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if by := config.rope_scaling:
        rope |= {
            "rope_type": "llama3", "factor": by.factor, "low_freq_factor": by.low_freq_factor,
            "high_freq_factor": by.high_freq_factor,
            "original_max_position_embeddings": by.original_length,
        }  # fmt: skip
    LlamaConfig(
        architectures=["LlamaForCausalLM"], dtype="bfloat16", rope_parameters=rope,
        hidden_size=config.dim, num_hidden_layers=config.n_layers, vocab_size=config.vocab_size,
        num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
        intermediate_size=config.ffn_dim, rms_norm_eps=config.norm_eps, eos_token_id=128001,
        bos_token_id=128000, max_position_embeddings=config.context_length,
        tie_word_embeddings=config.tied_output,
    ).save_pretrained(folder)  # fmt: skip
    named, reserved = NAMED["3.1" if config.rope_scaling else "3"], itertools.count()
    special = [named.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(256)]
    converter = TikTokenConverter(
        str(metas / "tokenizer.model"), SPLIT_PATTERN, extra_special_tokens=dict.fromkeys(special)
    )
    made, bos = converter.converted(), "<|begin_of_text|>"
    first = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))])
    made.post_processor = Sequence([made.post_processor, first])  # as in released files
    content = json.loads(made.to_str())
    merges = content["model"]["merges"]  # released files have them as strings, with one space
    content["model"]["merges"] = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in merges
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=2))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))

    shards, size = [{}], 0
    stored = torch.load(metas / "consolidated.00.pth", mmap=True, weights_only=True)
    for name, tensor in stored.items():
        if name == "output.weight" and config.tied_output:
            continue
        if size + tensor.nbytes > SHARD:
            shards, size = [*shards, {}], 0
        shards[-1][hugging_faces_name(name)] = tensor
        size += tensor.nbytes
    files = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE
        files |= dict.fromkeys(tensors, file)
        write_safetensors(folder / file, tensors, config.head_dim)
    if len(shards) > 1:
        total = {"total_size": sum(t.nbytes for tensors in shards for t in tensors.values())}
        (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": files}))


def write_safetensors(path, tensors, H):
    """Write as `safetensors.torch.save_file`, which would hold the whole file in memory.

    Query and key rows are reordered from neighbours to halves, see huggingface.py.
    """
    import torch

    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        place = [start, start := start + tensor.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": place}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        for name, tensor in tensors.items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                pairs = tensor.unflatten(0, (-1, H // 2, 2))
                tensor = pairs.transpose(1, 2).reshape(tensor.shape)
            file.write(tensor.view(torch.uint8).numpy().data)


# --- What is measured: each in its own process ----------------------------------------------------


def ours(folder):
    """This package, as the README uses it."""
    import torch

    from llama3_scratch import PROMPT, forward, load

    yield "imports"
    weights, config, tokenizer = load(folder)
    tokens = torch.tensor(tokenizer.encode(PROMPT))
    yield "load"
    yield forward(weights, tokens, config)[-1]


def hugging_faces(folder):
    """transformers, as its documentation uses it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    yield "imports"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokens = [128000, *tokenizer(BOOKS_PROMPT, add_special_tokens=False).input_ids]
    yield "load"
    yield model(torch.tensor([tokens])).logits[0, -1]


def metas(folder):
    """Meta's reference, the steps of `Llama3.build` in llama3/generation.py on a CPU."""
    import torch
    import torch.distributed as dist
    from fairscale.nn.model_parallel.initialize import initialize_model_parallel
    from llama_models.checkpoint import maybe_reshard_state_dict
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer
    from llama_models.llama3.tokenizer import Tokenizer

    yield "imports"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    initialize_model_parallel(1)
    params = json.loads((folder / "params.json").read_text())
    args = ModelArgs(max_seq_len=256, max_batch_size=1, **params)
    tokenizer = Tokenizer.get_instance()
    state_dict = maybe_reshard_state_dict([folder / "consolidated.00.pth"], args.n_kv_heads)
    model = Transformer(args)
    model.load_state_dict(state_dict, strict=True)
    tokens = tokenizer.encode(BOOKS_PROMPT, bos=True, eos=False)
    yield "load"
    yield model(torch.tensor([tokens]), 0)[0, -1]


PEERS = {  # name in the table: (what runs, on which folder)
    "this package, Meta's files": (ours, "meta"),
    "this package, Hugging Face's files": (ours, "hf"),
    "transformers, Hugging Face's files": (hugging_faces, "hf"),
    "Meta's reference, Meta's files": (metas, "meta"),
}
BOOKS_PROMPT = "the answer to the ultimate question of life, the universe, and everything is "


def child(peer, folder, began, answer):
    """Run one peer; save the seconds since `began` and the last logits in the file `answer`."""
    run, layout = PEERS[peer]
    import torch

    seconds = {}
    with torch.inference_mode():
        for stage in run(folder / layout):
            name = stage if isinstance(stage, str) else "logits"
            seconds[name] = time.monotonic() - began
    seconds["processor"] = time.process_time()
    torch.save((seconds, stage.float()), answer)


def measure(peer, folder):
    """-> (seconds at each stage, the last logits, largest anonymous memory), or its error text."""
    import torch

    answer = folder / "answer.pt"
    command = [sys.executable, __file__, "--child", peer, str(time.monotonic()), str(folder)]
    with open(folder / "said.txt", "w+") as said:
        process = subprocess.Popen([*command, answer], stdout=said, stderr=said)
        seen = peaks(process)
        said.seek(0)
        if process.returncode:
            return f"exit code {process.returncode}: {said.read().strip()[-300:]}"
    seconds, logits = torch.load(answer)
    return seconds, logits, seen["anonymous"]


def fill(folder):
    """Read a folder's files into the page cache."""
    for path in folder.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.read(2**24):
                pass


def compare(folder, peers, caches, repeats):
    """Print a line of a table for each peer and state of the page cache."""
    columns = ("", "page cache", "imports, s", "loaded, s", "first logits, s", "processor, s",
               "anonymous, GiB", "logits differ by")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    reference = None
    for cache in caches:
        for peer in peers:
            runs = []
            for _ in range(repeats):
                {"warm": fill, "cold": drop}[cache](folder / PEERS[peer][1])
                runs.append(measure(peer, folder))
                if isinstance(runs[-1], str):
                    print(f"| {peer} | {cache} | {runs[-1]} |", flush=True)
                    break
            else:
                at = [statistics.median(run[0][stage] for run in runs) for stage in runs[0][0]]
                logits, most = runs[0][1], max(run[2] for run in runs)
                reference = logits if reference is None else reference
                off = (logits - reference).abs().max() / reference.abs().max()
                shown = " | ".join(f"{seconds:.1f}" for seconds in at)
                shown += f" | {most / 2**30:.2f} | {off:.1e}"
                print(f"| {peer} | {cache} | {shown} |", flush=True)


def main():
    if sys.argv[1:2] == ["--child"]:
        peer, began, folder, answer = sys.argv[2:]
        return child(peer, Path(folder), float(began), answer)
    import torch

    from llama3_scratch import PRESETS, PROMPT

    assert PROMPT == BOOKS_PROMPT
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="Llama-3.2-1B")
    parser.add_argument("--directory", help="where the files are, or are written and left")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="only the lines that have this text in them")
    parser.add_argument("--cache", nargs="*", choices=("warm", "cold"), default=["warm", "cold"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.directory or temporary)
        for layout, write in (("meta", write_metas), ("hf", write_hugging_faces)):
            if (folder / layout).exists():
                continue
            unfinished, began = folder / f"{layout}.part", time.perf_counter()
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write(unfinished, folder / "meta", PRESETS[args.preset])
            unfinished.rename(folder / layout)
            print(f"{layout}: written in {time.perf_counter() - began:.0f} s", flush=True)
        if not args.cache:  # only the files were wanted
            return
        print(f"{args.preset}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
        peers = [peer for peer in PEERS if args.only in peer]
        compare(folder, peers, args.cache, args.repeats)


if __name__ == "__main__":
    main()
