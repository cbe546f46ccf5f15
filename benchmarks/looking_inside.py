"""Seconds and memory of notebook 13's main experiments at the size of a released model.

    python benchmarks/looking_inside.py [--preset Llama-3.2-1B] [--directory DIR]
        [--multiplications 1e13]

Writes random bfloat16 weights of that model's names, shapes and size in Meta's layout, executes the
notebook's own cells on them, and prints for each the seconds and the largest anonymous memory seen
(pages of files are not in it). --multiplications is what `affordable` allows an experiment. The
written files are deleted, unless --directory names a folder for them, in which they are used again.
The numbers mean nothing, since the weights are random; their time and memory do. For Linux.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path

from first_token import write_metas
from limited import anonymous

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "13_looking_inside.ipynb"
CELLS = {  # in the notebook's order: a cell, and what it does where that is a line of the table
    "setup": "", "pieces": "", "say": "in pieces, against `forward`", "record": "",
    "lens-table": "lens and frozen lens, one text", "one-layer": "",
    "parts-compare": "the sum of all parts, one text",
    "owners": "", "lead": "all streams and attention, the stories", "find": "heads by score",
    "repair": "", "repair-table": "heads ablated",
    "patch-runs": "the two other runs", "patch-heads": "one head patched, both ways",
    "patch-table": "one row patched, both ways",
}  # fmt: skip


def watched(most, stop):
    """Keep the largest anonymous memory in most[0] until `stop` is set."""
    while not stop.wait(0.02):
        most[0] = max(most[0], anonymous(os.getpid()))


def main():
    import torch

    from llama3_scratch import PRESETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="Llama-3.2-1B")
    parser.add_argument("--directory", help="where the files are, or are written and left")
    parser.add_argument("--multiplications", type=float, default=1e13)
    args = parser.parse_args()
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.directory or temporary) / "meta"
        if not folder.exists():
            folder.mkdir(parents=True)
            write_metas(folder, None, PRESETS[args.preset])
        os.environ["LLAMA3_CHECKPOINT"] = str(folder)
        print(f"{args.preset}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
        print("| experiment | seconds | anonymous, GiB |\n|---|---|---|", flush=True)
        space, said = {}, []
        for name, what in CELLS.items():
            source = sources[name].replace("1e13", str(args.multiplications))
            most, stop = [0], threading.Event()
            watcher = threading.Thread(target=watched, args=(most, stop))
            watcher.start()
            began = time.perf_counter()
            try:
                space["print"] = lambda *words, **_: said.append(words)
                exec(compile(source, name, "exec"), space)
            finally:
                stop.set()
                watcher.join()
            if what:
                seconds = time.perf_counter() - began
                print(f"| {what} | {seconds:.1f} | {most[0] / 2**30:.2f} |", flush=True)
        print(f"\n{space['R']} stories of {space['whole'].shape[1]} tokens")


if __name__ == "__main__":
    main()
