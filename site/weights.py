"""Write `weights.js`, from which the playground reads the model: python site/weights.py FOLDER

A plain script, so that the page works from disk, where a browser fetches no data. It assigns one
object: the config, the tokenizer's tokens in the order of their ranks, and every weight as
base64 of its bfloat16 numbers (two bytes each, the lower byte first).
"""

import argparse
import base64
import json
from dataclasses import asdict
from pathlib import Path

import torch

from llama3_scratch import load


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
    parser.add_argument("folder", help="where weights.js goes")
    parser.add_argument("--checkpoint", default="tiny", help="as `load` takes it (default: tiny)")
    options = parser.parse_args()
    path = write(options.folder, *load(options.checkpoint))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
