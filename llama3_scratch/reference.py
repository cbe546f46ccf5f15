"""Run Meta's own implementation on our weights under `watch`, and print ledgers of differences.

`llama-models` is Meta's package and `fairscale` has the layers that it uses; both come with the
extra `notebooks`. Their code is not changed: `watch` records their functions' variables.
"""

import contextlib
import inspect

import torch

from llama3_scratch.errors import InputError, require
from llama3_scratch.model import layer, rotations_at
from llama3_scratch.watch import watch


def metas_calls(weights, tokens, config, n_layers=None):
    """Weights, tokens [T], Config -> {name in Meta's model.py: [call, ...]}: its forward pass.

    A call is what `watch` recorded of `Transformer`, `TransformerBlock`, `Attention`,
    `FeedForward`, `RMSNorm` (their `forward`) or `apply_rotary_emb`: its local variables at the
    end, by Meta's names, and its result as "return"; tensors begin with a batch of 1. The calls of
    one name are in the order of the layers. n_layers: the number of layers to run; None runs all,
    and only then are the logits meaningful. The weights are copied into Meta's code one layer at a
    time. It scales RoPE by 8 or not at all; for another factor (Llama 3.2 has 32) it is given our
    rotations. Raises `InputError` if Meta's package is missing.
    """
    try:
        from fairscale.nn.model_parallel import initialize
        from llama_models.llama3 import model as meta
    except ImportError as error:
        raise InputError(f"{error}: pip install 'llama3-scratch[notebooks]' has it.") from None
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    if not initialize.model_parallel_is_initialized():
        with contextlib.redirect_stdout(None):  # it prints a line about it
            initialize.initialize_model_parallel(1)

    def layers(args):
        for i in range(config.n_layers if n_layers is None else n_layers):
            block = meta.TransformerBlock(i, args)
            block.load_state_dict(layer(weights, i))
            yield block

    classes = meta.Transformer, meta.TransformerBlock, meta.Attention, meta.FeedForward
    functions = [inspect.unwrap(kind.forward) for kind in (*classes, meta.RMSNorm)]
    norm, dtype = weights["norm.weight"], torch.get_default_dtype()
    torch.set_default_dtype(norm.dtype)
    try:
        with torch.device(norm.device), torch.inference_mode():
            params = config.to_params() | {"n_layers": 0}
            args = meta.ModelArgs(max_batch_size=1, max_seq_len=len(tokens), **params)
            transformer = meta.Transformer(args)
            outer = [name for name in weights if not name.startswith("layers.")]
            transformer.load_state_dict({name: weights[name] for name in outer})
            del transformer.layers  # an empty list; a generator of layers takes its place
            transformer.layers = layers(args)
            if config.rope_scaling and config.rope_scaling.factor != 8:
                transformer.freqs_cis = rotations_at(torch.arange(len(tokens)), config)
            with watch(*functions, meta.apply_rotary_emb) as seen:
                transformer(tokens[None], 0)
    finally:
        torch.set_default_dtype(dtype)
    calls = {}
    for call in seen:
        module = call.pop("self", None)  # not kept: it holds a layer's weights
        calls.setdefault(type(module).__name__ if module else call["def"], []).append(call)
    return calls


def ledger(stages):
    """{stage: (our tensor, Meta's)} -> a printed table: shape, dtype, largest difference.

    The difference is 0 only if every bit is equal. Rounding, up to 1e-5 of the largest value, is
    shown as a word, since its digits differ between machines. Raises `InputError` if a shape or
    dtype differs, or a value differs by more than that. Meta's leading batch of 1 is dropped.
    """
    print(f"{'stage':28} {'shape':17} {'dtype':10} largest difference")
    for stage, (ours, theirs) in stages.items():
        theirs = theirs[0] if theirs.dim() == ours.dim() + 1 else theirs
        what = [(list(x.shape), str(x.dtype).removeprefix("torch.")) for x in (ours, theirs)]
        require(what[0] == what[1], f"{stage}: ours is {what[0]}, Meta's is {what[1]}.")
        scale, worst = theirs.abs().max(), (ours - theirs).abs().max()
        equal = torch.equal(ours, theirs)
        require(equal or worst <= 1e-5 * scale, f"{stage}: differs by {worst} in {scale}.")
        print(f"{stage:28} {str(what[0][0]):17} {what[0][1]:10} {0 if equal else 'rounding'}")
