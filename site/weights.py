"""Write the files from which the playground reads its models: python site/weights.py FOLDER

Plain scripts, so that the page works from disk, where a browser fetches no data. `weights.js`
assigns one object: the config, the tokenizer's tokens in the order of their ranks, and every weight
as base64 of its bfloat16 numbers (two bytes each, the lower byte first). `weights-int4.js`, which
the page loads when it is asked to, assigns the matrices that the same model has in 4 bits: codes
(two to a byte, the first one in the low bits), scales (float32) and zeros (a byte each).
"""

import argparse
import base64
import json
from dataclasses import asdict
from pathlib import Path

import torch

from llama3_scratch import load
from llama3_scratch.quantize.packed import Int4


def write(folder, weights, config, tokenizer):
    """A model as `load` returns it -> the path of FOLDER/weights.js. The same bytes every time."""
    derived = {"head_dim": config.head_dim, "n_parameters": config.n_parameters}
    content = {
        "config": asdict(config) | derived,
        "tokens": [_text(token) for token in sorted(tokenizer.ranks, key=tokenizer.ranks.get)],
        "special": list(tokenizer.special),
        "stop": sorted(tokenizer.stop_ids),
        "weights": {name: _text(_bfloat16(weights[name])) for name in weights},
    }
    entries = [f"{json.dumps(key)}: {_lines(value)}" for key, value in content.items()]
    path = Path(folder) / "weights.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('"use strict";\nconst CHECKPOINT = {\n' + ",\n".join(entries) + "\n};\n")
    return path


def write_int4(folder, weights):
    """Weights, some of them `Int4`, whose other tensors are those of the model in weights.js -> the
    path of FOLDER/weights-int4.js. The same bytes every time."""
    path = Path(folder) / "weights-int4.js"
    matrices = {name: weights[name] for name in weights if isinstance(weights[name], Int4)}
    entries = {name: json.dumps(_four_bits(matrix)) for name, matrix in matrices.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {entry}" for name, entry in entries.items())
    path.write_text(f'"use strict";\nconst INT4 = {{\n{lines}\n}};\n')
    return path


def _four_bits(matrix):
    """Int4 -> what the page needs to know of it."""
    scales = matrix.scales.to(torch.float32).contiguous().numpy().astype("<f4")
    parts = {"codes": matrix.codes.numpy(), "scales": scales, "zeros": matrix.zeros.numpy()}
    assert matrix.columns is None and matrix.zeros.dtype == torch.uint8
    return {"n": matrix.shape[1], "group": matrix.group or matrix.shape[1]} | {
        name: _text(part.tobytes()) for name, part in parts.items()
    }


def _bfloat16(tensor):
    numbers = tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy()
    return numbers.astype("<i2").tobytes()


def _text(content):
    return base64.b64encode(content).decode("ascii")


def _lines(value):
    """JSON, with one line for each weight and one for everything else."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where weights.js and weights-int4.js go")
    options = parser.parse_args()
    paths = [
        write(options.folder, *load("tiny")),
        write_int4(options.folder, load("tiny-int4").weights),
    ]
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
