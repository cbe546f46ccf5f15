"""One model on several ranks: the same logits, texts and gradients, and each mistake is noticed."""

import dataclasses
import math

import pytest
import ranks
import torch
from helpers import (
    BYTES,
    SCALED_DOWN,
    close,
    make_tokens,
    make_weights,
    metas_weights,
    write,
    write_shards,
)
from torch.nn import functional

from llama3_scratch import PRESETS, InputError, forward, generate, load, save, weight_shapes
from llama3_scratch.checkpoint import memory, meta
from llama3_scratch.checkpoint.source import open_checkpoint
from llama3_scratch.model import layer
from llama3_scratch.parallel import open_slice, slice_config, slice_weights
from llama3_scratch.processes import run_on

EIGHT = ranks.EIGHT
TIED = dataclasses.replace(EIGHT, tied_output=True)
TOKENS = make_tokens(EIGHT, 11, seed=3)
PROMPT = TOKENS[:6].tolist()
SAMPLING = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}  # of the largest logit


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{number of files: a folder in Meta's layout}; all hold the same weights, in float32."""
    made = {}
    for n_files in (1, 2, 4, 8):
        made[n_files] = tmp_path_factory.mktemp(f"files{n_files}") / "model"
        save(made[n_files], make_weights(EIGHT), EIGHT, BYTES)
        write_shards(made[n_files], make_weights(EIGHT), n_files)
    return made


@pytest.fixture(scope="module")
def whole():
    """{type: the logits of one process}"""
    weights = make_weights(EIGHT)
    wide = {name: tensor.double() for name, tensor in weights.items()}
    with torch.inference_mode(), ranks.in_float64():
        exact = forward(wide, TOKENS, EIGHT).clone()
    with torch.inference_mode():
        return {torch.float32: forward(weights, TOKENS, EIGHT).clone(), torch.float64: exact}


def agree(found, whole, dtype):
    """Whether all ranks have the same bits, and those of one process up to the order of sums."""
    same = all(torch.equal(one, other) for one, other in zip(found[0], found[-1], strict=True))
    bound = TOLERANCE[dtype] * whole.abs().max()
    return same and all((one - whole).abs().max() <= bound for one in found[0])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("p", "n_files"), [(1, 1), (2, 2), (4, 4), (8, 8), (2, 1), (2, 8), (4, 2)])
def test_the_logits_are_those_of_the_joined_model(folders, whole, p, n_files, dtype):
    """From one file per rank, from slices of fewer files, from several files joined."""
    found = run_on(p, ranks.logits, folders[n_files], dtype, TOKENS)
    assert agree(found, whole[dtype], dtype)


def test_one_rank_keeps_every_bit(folders, whole):
    assert torch.equal(run_on(1, ranks.logits, folders[1], torch.float32, TOKENS)[0][0],
                       whole[torch.float32])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_ranks_have_the_bits_of_a_serial_program_that_adds_the_same_two_halves(folders, dtype):
    """16 tokens: of another number, silu computes the last few values by scalar instructions."""
    tokens = make_tokens(EIGHT, 16)
    halves = [slice_weights(make_weights(EIGHT, dtype), rank, 2) for rank in range(2)]
    serial = ranks.Serial({name: [half[name] for half in halves] for name in halves[0]})
    with torch.inference_mode():
        expected = forward(serial, tokens, EIGHT)
    found = run_on(2, ranks.logits, folders[2], dtype, tokens)
    assert all(torch.equal(logits, expected) for logits, _ in found)


@pytest.mark.parametrize("p", [2, 4])
def test_a_split_by_rows_keeps_every_bit(p):
    """Each column of the result is computed as before. (A split by columns changes a sum.)"""
    x, weights = torch.randn(7, EIGHT.dim), make_weights(EIGHT)
    matrix = weights["layers.0.feed_forward.w1.weight"]
    parts = [slice_weights(weights, r, p)["layers.0.feed_forward.w1.weight"] for r in range(p)]
    assert torch.equal(torch.cat([x @ part.T for part in parts], -1), x @ matrix.T)


@pytest.mark.parametrize("p", [2, 4])
def test_the_logits_have_the_bits_of_metas_own_code_on_as_many_ranks(folders, p):
    for theirs, ours in run_on(p, ranks.metas, folders[p], TOKENS, torch.float32):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("p", [2, 4])
def test_a_text_is_the_same_on_all_ranks_and_in_one_process(folders, p):
    weights = make_weights(EIGHT)
    for sampling in ({"temperature": 0.0}, SAMPLING):
        expected = list(generate(weights, PROMPT, EIGHT, 20, **sampling))
        assert run_on(p, _generated, folders[p], sampling) == [expected] * p
        assert len(set(expected)) > 5  # not one token again and again


def _generated(folder, sampling, mistake=None):
    return ranks.generated(folder, PROMPT, mistake, **sampling)


INPUTS, TARGETS = make_tokens(EIGHT, 2, 9, seed=1), make_tokens(EIGHT, 2, 9, seed=2)


def whole_gradients(weights, config):
    wide = {name: tensor.double().clone().requires_grad_() for name, tensor in weights.items()}
    if config.tied_output:
        wide["output.weight"] = wide["tok_embeddings.weight"]
    with ranks.in_float64():
        logits = forward(wide, INPUTS, config)
        loss = functional.cross_entropy(logits.flatten(0, -2), TARGETS.flatten())
        loss.backward()
    return loss.item(), {name: leaf.grad for name, leaf in wide.items()}


def gradients_agree(found, expected):
    """Whether each rank's gradients are its slices of the whole model's."""
    loss, whole = expected
    for rank, (own, gradients) in enumerate(found):
        parts = slice_weights(whole, rank, len(found))
        worst = max((gradients[name] - parts[name]).abs().max() / parts[name].abs().max()
                    for name in whole)  # fmt: skip
        if abs(own - loss) > 1e-12 or worst > 1e-11:
            return False
    return True


def saved(folder, config):
    weights = metas_weights(config)
    save(folder, weights, config, BYTES)
    return weights


@pytest.mark.parametrize("config", [EIGHT, TIED], ids=["untied", "tied"])
def test_the_gradients_are_slices_of_the_whole_gradients(tmp_path, config):
    weights = saved(tmp_path / "model", config)
    found = run_on(2, ranks.gradients, tmp_path / "model", INPUTS, TARGETS)
    assert gradients_agree(found, whole_gradients(weights, config))


@pytest.mark.parametrize("mistake", [
    "a mean for a sum", "a partial sum taken for the whole", "a norm over a slice",
])  # fmt: skip
def test_the_logits_tell(folders, whole, mistake):
    """In float64: such a mistake stays; the order of sums would fall by eight orders."""
    found = run_on(2, ranks.logits, folders[2], torch.float64, TOKENS, mistake)
    assert not agree(found, whole[torch.float64], torch.float64)
    assert agree(run_on(2, ranks.logits, folders[2], torch.float64, TOKENS),
                 whole[torch.float64], torch.float64)  # fmt: skip


@pytest.mark.parametrize("mistake", [
    "a forgotten reduce in the backward pass", "a tied table split once",
])  # fmt: skip
def test_the_gradients_tell(tmp_path, mistake):
    """The loss is that of the whole model, so it cannot tell."""
    weights = saved(tmp_path / "model", TIED)
    found = run_on(2, ranks.gradients, tmp_path / "model", INPUTS, TARGETS, mistake)
    expected = whole_gradients(weights, TIED)
    assert not gradients_agree(found, expected)
    assert all(abs(loss - expected[0]) < 1e-12 for loss, _ in found)


def test_the_texts_tell_different_seeds(folders):
    one, other = run_on(2, _generated, folders[2], SAMPLING, "different seeds")
    assert one != other


@pytest.mark.parametrize(("p", "n_files"), [(4, 4), (4, 2), (2, 4)])
def test_a_rank_reads_its_own_files_where_they_are_mapped(folders, monkeypatch, p, n_files):
    """Nothing is copied, unless a slice lies in several files."""
    files, read = [], meta._read_file
    monkeypatch.setattr(meta, "_read_file", lambda path: files.append(read(path)) or files[-1])
    for rank in range(p):
        files.clear()
        part, own = open_slice(folders[n_files], rank, p), files[rank * n_files // p]
        for name, tensor in own.items():
            start = tensor.untyped_storage().data_ptr() if tensor.dim() == 2 else None
            mapped = part.weights[name].untyped_storage().data_ptr() == start
            assert mapped == (p >= n_files and tensor.dim() == 2), name


@pytest.mark.parametrize("name", SCALED_DOWN)
def test_hugging_faces_files_give_the_same_slices(tmp_path, name):
    """Whole heads are put into Meta's order; only the slice is, and it is cached alone."""
    config = dataclasses.replace(SCALED_DOWN[name], multiple_of=8)
    weights = metas_weights(config)
    write(tmp_path / "model", config, weights)
    for rank in range(2):
        part, expected = open_slice(tmp_path / "model", rank, 2), slice_weights(weights, rank, 2)
        assert part.config.sizes == slice_config(config, 2).sizes
        for _ in range(2):
            assert all(torch.equal(part.weights[name], expected[name]) for name in weights)
        for tensor in part.weights.cached.values():
            assert tensor.numel() * 2 <= config.dim**2


def test_slices_are_cast_as_the_weights_are(folders):
    weights, _, _ = load(folders[1], torch.bfloat16)
    part = slice_weights(weights, 1, 2)
    assert {tensor.dtype for tensor in part.values()} == {torch.bfloat16}


def test_matrices_of_few_bits_are_refused():
    with pytest.raises(InputError, match="few bits.*--pipeline"):
        open_slice("tiny-int4", 0, 2)


@pytest.mark.parametrize(("change", "p", "says"), [
    ({}, 16, "n_kv_heads is 8: expected a multiple of the 16 ranks"),
    ({}, 3, "n_kv_heads is 8: expected a multiple of the 3 ranks"),
    ({"multiple_of": 7}, 8, "F is 133: expected a multiple of the 8 ranks"),
    ({"vocab_size": 510}, 4, "vocab_size is 510: expected a multiple of the 4 ranks"),
])  # fmt: skip
def test_what_cannot_be_split_is_refused_by_name(change, p, says):
    with pytest.raises(InputError, match=says):
        slice_config(dataclasses.replace(EIGHT, **change), p)


@pytest.mark.parametrize(("name", "p"), [("Llama-3-70B", 8), ("Llama-3.1-405B", 8),
                                         ("Llama-3.2-1B", 2)])  # fmt: skip
def test_the_shapes_of_released_models_per_rank(name, p):
    """On the meta device: every slice, and the whole forward pass of a rank's layers."""
    config = PRESETS[name]
    part = slice_config(config, p)
    assert (part.head_dim, part.n_heads * p) == (config.head_dim, config.n_heads)
    tables = ("tok_embeddings.weight", "output.weight")
    held = 0
    weights = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
               for name, shape in weight_shapes(config).items()}  # fmt: skip
    for rank in (0, p - 1):
        own = slice_weights(weights, rank, p)
        for name, shape in weight_shapes(part).items():
            expected = (shape[0] // p, *shape[1:]) if name in tables else shape
            assert own[name].shape == expected, name
        held = sum(own[name].numel() for name in own if name != tables[1] or not config.tied_output)
        assert held == part.n_parameters
    assert config.n_parameters <= p * held < 1.001 * config.n_parameters  # the norms are whole
    stream = torch.empty(17, config.dim, dtype=torch.bfloat16, device="meta")
    with torch.device("meta"):
        one = layer(own, 0)
        query = stream @ one["attention.wq.weight"].T
        assert (query.unflatten(-1, (-1, part.head_dim))).shape[1:] == (part.n_heads, part.head_dim)
        assert ((stream @ one["feed_forward.w1.weight"].T) @ one["feed_forward.w2.weight"].T
                ).shape == stream.shape  # fmt: skip


def test_the_plan_is_that_of_a_rank():
    """A rank of 8 needs an eighth of the weights and of the cache, and scores of fewer heads."""
    config = PRESETS["Llama-3-70B"]
    whole, part = (memory.plan(c, context=8192) for c in (config, slice_config(config, 8)))
    assert part.cache * 8 == whole.cache
    assert whole.weights < 8 * part.weights < 1.001 * whole.weights
    assert part.weights / 1e9 == pytest.approx(17.64, abs=0.01)
    cast, part_cast = (memory.plan(c, torch.float32, weights={"norm.weight": torch.zeros(
        1, dtype=torch.bfloat16)}).copies for c in (config, slice_config(config, 8)))  # fmt: skip
    assert cast == 4 * config.vocab_size * config.dim
    assert part_cast * 8 == pytest.approx(cast, rel=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize("p", [1, 2])
def test_a_rank_of_a_1b_takes_the_memory_that_is_planned(tmp_path, p):
    """Files of the 1B's shapes, 2.5 GB: measured with all that is mapped, for 64 tokens."""
    config = PRESETS["Llama-3.2-1B"]
    values = torch.randn(2**20).bfloat16() * 0.02
    for i in range(p):
        shard = {}
        for name, shape in weight_shapes(config).items():
            if name != "output.weight":
                split = meta.split_dim(name) if len(shape) == 2 else None
                part = [n // p if dim == split else n for dim, n in enumerate(shape)]
                shard[name] = values.repeat(math.prod(part) // len(values) + 1)[: math.prod(part)]
                shard[name] = shard[name].clone().view(part)
        torch.save(shard, tmp_path / f"consolidated.{i:02d}.pth")
    for grown, planned in run_on(p, ranks.measured, tmp_path, config, 64):
        print(f"{p} ranks: measured {grown / 1e9:.3f} GB, planned {planned / 1e9:.3f} GB")
        assert 0.95 * planned < grown < 1.05 * planned


BATCHES = [  # unequal numbers of rows, and of targets that count
    (make_tokens(EIGHT, 3, 9, seed=4), make_tokens(EIGHT, 3, 9, seed=5)),
    (make_tokens(EIGHT, 1, 9, seed=6), make_tokens(EIGHT, 1, 9, seed=7)),
    (make_tokens(EIGHT, 2, 9, seed=8), make_tokens(EIGHT, 2, 9, seed=9)),
    (make_tokens(EIGHT, 2, 9, seed=8), torch.full((2, 9), -100)),
]  # fmt: skip
BATCHES[0][1][:, 2:] = -100


def as_one_batch(weights, config, batches):
    inputs, targets = (torch.cat(both) for both in zip(*batches, strict=True))
    wide = {name: tensor.double().clone().requires_grad_() for name, tensor in weights.items()}
    with ranks.in_float64():
        logits = forward(wide, inputs, config)
        loss = functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
        loss.backward()
    return loss.item(), {name: leaf.grad for name, leaf in wide.items()}


def batches_agree(found, expected):
    whole = expected[1]
    worst = max((gradients[name] - whole[name]).abs().max() / whole[name].abs().max()
                for _, gradients in found for name in whole)  # fmt: skip
    return worst < 1e-11 and all(abs(loss - expected[0]) < 1e-12 for loss, _ in found)


@pytest.mark.parametrize("p", [2, 4])
def test_data_parallel_is_one_large_batch(p):
    """With unequal masks; the fourth rank has no target at all."""
    weights = {name: tensor.double() for name, tensor in make_weights(EIGHT).items()}
    expected = as_one_batch(weights, EIGHT, BATCHES[:p])
    assert batches_agree(run_on(p, ranks.data_parallel, weights, EIGHT, BATCHES[:p]), expected)
    means = run_on(p, ranks.data_parallel, weights, EIGHT, BATCHES[:p], "a mean of means")
    assert not batches_agree(means, expected)
    assert all(math.isfinite(loss) for loss, _ in means)


def test_steps_on_two_ranks_are_steps_with_all_rows():
    """Three steps of Muon and AdamW: both ranks end with the same bits, near those of one."""
    ids = make_tokens(EIGHT, 6, 10, seed=11)
    weights = make_weights(EIGHT)
    one, other = run_on(2, ranks.trained, weights, EIGHT, [ids[:4], ids[4:]], 3)
    (alone,) = run_on(1, ranks.trained, weights, EIGHT, [ids], 3)
    assert all(torch.equal(one[name], other[name]) for name in weights)
    for name in weights:
        close(one[name], alone[name], 1e-3)
        assert not torch.equal(one[name], weights[name])


def test_every_file_is_needed(folders, tmp_path):
    for path in folders[4].iterdir():
        if path.name != "consolidated.02.pth":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"none left out\), found .*03.pth"):
        open_slice(tmp_path, 0, 4)


def test_the_rule_of_the_split_is_that_of_the_files():
    """`cut` and the reader of files agree about every name."""
    stored = open_checkpoint("tiny").weights
    for name in stored:
        halves = [meta.cut(stored[name], name, rank, 2) for rank in range(2)]
        if stored[name].dim() == 2:
            assert torch.equal(torch.cat(halves, meta.split_dim(name)), stored[name])
