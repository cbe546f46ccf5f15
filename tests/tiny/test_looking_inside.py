"""What notebook 13 stands on: its equalities, each with a control, and the tools that it names.

Where a function is the notebook's own, its cells are executed here as they are printed there.
"""

import json
import os

import pytest
import torch
from helpers import ODD, ROOT, close, make_tokens, make_weights

from llama3_scratch import PROMPT, STORY, forward, load, model, save
from llama3_scratch.checkpoint.export import export
from llama3_scratch.checkpoint.source import open_checkpoint
from llama3_scratch.exercises import e13_looking_inside as check
from llama3_scratch.model import attend, block, feed_forward
from llama3_scratch.tiny import heads, history
from llama3_scratch.train import pad
from llama3_scratch.watch import watch


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", dtype=torch.float32)


def cells_of_13(*ids, **given):
    """Execute these cells of the notebook, in its order -> the names that they define."""
    cells = json.loads((ROOT / "notebooks/13_looking_inside.ipynb").read_text())["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells}
    space = {"__name__": "notebook_13"}
    for name in sorted(ids, key=list(sources).index):
        exec(compile(sources[name], name, "exec"), space)
        space.update(given if name == "record" else {})
    return space


START = "setup", "pieces", "say", "record", "lens-table", "one-layer"


@pytest.fixture(scope="module")
def notebook():
    names = "owners", "lead", "facts", "facts-lead", "path", "path-table", "match", "match-table"
    return cells_of_13(*START, *names)


# --- The model in pieces, and three ways to change it ---------------------------------------------


def test_the_model_in_pieces_is_the_model(notebook, tiny):
    through, embed, say = (notebook[name] for name in ("through", "embed", "say"))
    ids = torch.tensor(tiny.tokenizer.encode(STORY))
    right = forward(tiny.weights, ids, tiny.config)
    for k in range(tiny.config.n_layers + 1):
        assert torch.equal(say(through(through(embed(ids), 0, k), k)), right)
    assert not torch.equal(say(through(through(embed(ids), 0, 2), 3)), right)  # a layer left out


def test_nothing_ablated_changes_nothing():
    weights, ids = make_weights(ODD), make_tokens(ODD, 2, 9)
    with watch(attend) as seen:
        right = forward(weights, ids, ODD)
    own = {(i, j): call["return"][..., j, :] for i, call in enumerate(seen) for j in range(6)}
    for given in ({}, own):
        assert torch.equal(forward(weights, ids, ODD, attend=heads.instead(given)), right)
    others = {place: rows.flip(0) for place, rows in own.items()}  # those of the other text
    assert not torch.allclose(forward(weights, ids, ODD, attend=heads.instead(others)), right)


@pytest.mark.parametrize("place", [(0, 5), (3, 1)])
def test_a_head_without_output_is_a_head_without_columns_in_wo(place):
    weights, ids, (i, j) = make_weights(ODD), make_tokens(ODD, 7), place
    silent = forward(weights, ids, ODD, attend=heads.instead({place: 0.0}))
    assert torch.equal(silent, forward(weights, ids, ODD, attend=heads.without(place)))
    name, wo = f"layers.{i}.attention.wo.weight", weights[f"layers.{i}.attention.wo.weight"].clone()
    wo.unflatten(1, (ODD.n_heads, ODD.head_dim))[:, j] = 0
    close(silent, forward({**weights, name: wo}, ids, ODD))
    wo.unflatten(1, (ODD.n_heads, ODD.head_dim))[:, (j + 1) % 6] = 0  # the control
    away = (silent - forward({**weights, name: wo}, ids, ODD)).abs().max()
    assert away > 1e-3 * silent.abs().max()


# --- Contributions --------------------------------------------------------------------------------


def lead(weights, ids, config, token, other):
    last = forward(weights, ids, config)[-1]
    return last[token] - last[other]


@pytest.mark.parametrize("text", [STORY, PROMPT])
def test_contributions_add_up_and_do_not_without_one_part(tiny, text):
    weights, config, tokenizer = tiny
    ids = torch.tensor(tokenizer.encode(text))
    u, v = forward(weights, ids, config)[-1].topk(2).indices.tolist()
    parts, right = heads.contributions(weights, ids, config, u, v), lead(weights, ids, config, u, v)
    assert len(parts) == 1 + 6 * 9
    limit = 1e-5 * right.abs()
    assert (parts.sum() - right).abs() <= limit
    missing = (parts.sum() - parts - right).abs() > limit  # each part left out in turn
    assert missing.sum() > 50 and missing[parts.abs() > 2 * limit].all()


def test_contributions_are_the_exercise_and_add_up_on_odd_sizes():
    weights, ids = make_weights(ODD), make_tokens(ODD, 11)
    parts = heads.contributions(weights, ids, ODD, 5, 17)
    with watch(block, attend, feed_forward) as seen:
        forward(weights, ids, ODD)
    outputs, fed = (torch.stack([c["return"][-1] for c in seen if c["def"] == name])
                    for name in ("attend", "feed_forward"))  # fmt: skip
    embedding = weights["tok_embeddings.weight"][ids[-1]]
    ours = check.contributions.right(embedding, outputs, fed, weights, 5, 17, ODD)
    close(parts, ours)
    right = lead(weights, ids, ODD, 5, 17)
    assert (parts.sum() - right).abs() <= 1e-5 * parts.abs().sum()
    rolled = check.contributions.right(embedding, outputs.roll(1, 1), fed, weights, 5, 17, ODD)
    assert (rolled.sum() - right).abs() > 1e-3 * parts.abs().sum()  # heads exchanged


def test_a_shift_of_all_logits_changes_contributions_to_one_but_not_to_a_difference():
    weights, ids = make_weights(ODD), make_tokens(ODD, 6)
    moved = weights["output.weight"] + torch.linspace(-1, 1, ODD.dim)
    shifted = {**weights, "output.weight": moved}
    before, after = (forward(w, ids, ODD)[-1] for w in (weights, shifted))
    close(after.softmax(-1), before.softmax(-1))
    pair = [heads.contributions(w, ids, ODD, 3, 8) for w in (weights, shifted)]
    close(*pair)
    zero = {"output.weight": torch.cat([moved, torch.zeros(1, ODD.dim)])}  # token V: logit 0
    plain = {"output.weight": torch.cat([weights["output.weight"], torch.zeros(1, ODD.dim)])}
    one, two = (heads.contributions({**weights, **w}, ids, ODD, 3, ODD.vocab_size)
                for w in (plain, zero))  # fmt: skip
    assert ((one - two).abs() > 1e-4).all()


# --- Patches --------------------------------------------------------------------------------------


def test_patching_every_row_is_the_other_run_and_no_row_the_same(notebook, tiny):
    through, embed = notebook["through"], notebook["embed"]
    ids = torch.tensor(tiny.tokenizer.encode(STORY))
    other = torch.tensor(tiny.tokenizer.encode(STORY.replace("the kite?", "the box?")))
    for k in (0, 3, 6):
        ours, theirs = (through(embed(each), 0, k) for each in (ids, other))
        start, end = (forward(tiny.weights, each, tiny.config) for each in (ids, other))
        for moved, right, wrong in ((len(ids), end, start), (0, start, end)):
            found = notebook["say"](through(torch.cat([theirs[:moved], ours[moved:]]), k))
            assert torch.equal(found, right) and not torch.allclose(found, wrong)
    swapped = (ids != other).nonzero().item()
    patch = check.patch.right
    one = patch(tiny.weights, ids, other, 0, swapped, tiny.config)
    close(one, end)  # before layer 0 the only row that differs is the token's
    after = patch(tiny.weights, ids, other, 6, swapped, tiny.config)
    assert not torch.allclose(after[-1], end[-1], atol=1.0)  # after layer 5 it is too late


def test_the_patched_path_carries_the_look_up(notebook):
    """Two heads' writing, into the keys of the last layer alone; the controls: all other heads."""
    keys_from, change = notebook["keys_from"], notebook["change"]
    lower, t, facts, others = (notebook[name] for name in ("lower", "t", "facts", "others"))
    assert set(lower[:2]) == {(4, 0), (4, 1)} and t == 5 and len(lower) == 40
    for some, attention, share, back in (
        (lower[:2], 0.0, 0.0, 1.0), (lower[2:], 0.95, 1.0, 0.0), (lower, 0.0, 0.0, 1.0),
    ):  # fmt: skip
        found, noised = keys_from(facts[0][t] + change(some))
        _, denoised = keys_from(others[0][t] - change(some))
        assert abs(found.mean() - attention) < 0.05
        assert abs(noised.mean() - share) < 0.05 and abs(denoised.mean() - back) < 0.05
    found, whole = keys_from(facts[0][t])  # nothing patched
    close(whole, torch.ones_like(whole))


def test_the_circuit_is_in_the_weights(notebook):
    """Heads find their own thing without a text; a head that is not in the circuit does not."""
    match, query, key, control = (notebook[n] for n in ("match", "query", "key", "control"))
    hits = {}
    for name, keys in (("circuit", key), ("control", control)):
        scores = [match(query, keys, n, 6) for n in (2, 3, 5, 6, 7)]
        hits[name] = [(s.argmax(1) == torch.arange(len(s))).float().mean() for s in scores]
    assert min(hits["circuit"]) > 0.8 and max(hits["control"]) < 0.3
    one, far = match(query, key, 3, 1), match(query, key, 3, 255)
    assert not torch.allclose(one, far, rtol=0.01)  # RoPE: the form depends on the distance


def test_the_form_from_the_weights_is_the_score_in_the_model(notebook, tiny):
    """Rows that hold what two heads write, at two positions: `match` gives `attend`'s scores."""
    weights, config, _ = tiny
    w, gap = model.layer(weights, 5), 6
    norm = {**w, "attention_norm.weight": w["attention_norm.weight"]}
    query, key = notebook["query"][:3], notebook["key"][:3]
    rows = torch.zeros(3, gap + 1, config.dim)
    rows[:, 0], rows[:, gap] = key, query
    positions = torch.arange(gap + 1)
    turns, mask = model.rotations_at(positions, config), model.causal_mask(positions, gap + 1)
    x = model.rms_norm(rows, norm["attention_norm.weight"], config.norm_eps)
    with watch(attend) as seen:
        model.attention(x, w, turns, mask, config)
    size = (rows.pow(2).mean(-1) + config.norm_eps).sqrt()
    for n in (1, 3, 6):
        scores = seen[0]["scores"][:, n, gap, 0] * size[:, 0] * size[:, gap]
        close(notebook["match"](query, key, n, gap).diag(), scores)
        other = notebook["match"](query, key, n, gap + 3).diag()
        assert (other - scores).abs().max() > 1e-3 * scores.abs().max()


# --- The probe ------------------------------------------------------------------------------------


def test_the_probes_control_task_is_at_chance():
    """On fewer stories than in the notebook; the control of the control: the true labels."""
    names = (*START, "probe", "probe-rows", "probe-fit")
    few = cells_of_13(*names, affordable=lambda most, tokens: min(most, 150), pad=pad)
    fit, kept, truth, n = (few[name] for name in ("fit", "kept", "truth", "n_fit"))
    controls = []
    for seed in range(6):
        order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))
        right, control = check.control.right(fit, kept[6, :, 2], truth, n, order)
        controls.append(control)
        assert right > 0.6
    assert torch.stack(controls).mean() < 0.15  # chance: 1 in 16
    memorized = fit(kept[6, :n, 2], truth[order][:n])(kept[6, :n, 2]) == truth[order][:n]
    assert memorized.float().mean() > 0.5  # though it fits the stories that it has seen


# --- Texts with slots, and the measurements that ship ---------------------------------------------


def test_slots_are_filled_where_they_say(tiny):
    tokenizer = tiny.tokenizer
    x = heads.single_tokens(["kite", "box", "key", "zzzzzz"], tokenizer, 3)
    assert len(x) == 3  # the fourth is no single token
    rows = heads.different(x, 5, 2, seed=1)
    assert rows.shape == (5, 2) and (rows[:, 0] != rows[:, 1]).all()
    ids, at = heads.filled("The {a} is here. Where is the {b}? The {b}", dict(
        zip("ab", rows.T, strict=True)), tokenizer)  # fmt: skip
    text = tokenizer.decode(ids[0].tolist()[1:])
    a, b = (tokenizer.decode([int(token)]) for token in rows[0])
    assert text == f"The{a} is here. Where is the{b}? The{b}"
    assert ids[0].tolist() == tokenizer.encode(text)
    assert torch.equal(ids[:, at["a"][0]], rows[:, 0]) and len(at["a"]) == 1
    assert all(torch.equal(ids[:, place], rows[:, 1]) for place in at["b"]) and len(at["b"]) == 2
    lent = heads.single_tokens(["zzzzzz"], tokenizer, 4)
    assert len(lent) >= 4 and len(set(lent.tolist())) == len(lent)


def test_a_head_that_writes_nothing_is_not_needed(tiny):
    weights, config, tokenizer = tiny
    name = "layers.0.attention.wo.weight"
    cut = {**weights, name: torch.zeros_like(weights[name])}
    table = heads.needed((cut, config, tokenizer), n_texts=4)
    for found in table.values():
        falls = torch.tensor(found["fall"])
        assert falls.shape == torch.tensor(found["score"]).shape == (6, 8)
        assert falls[0].abs().max() < 1e-4 and falls[1:].abs().max() > 1e-2


def test_the_shipped_ablations_are_those_of_the_shipped_history():
    rows = json.loads(heads.SHIPPED.read_text())
    runs = history.read()["runs"]
    steps = {(run["seed"], each["step"]): each for run in runs for each in run["checkpoints"]}
    patterns = "pronoun to name", "induction"
    assert [(row["seed"], row["step"]) for row in rows] == [s for s in steps for _ in patterns]
    for row in rows:
        best = max(map(max, steps[row["seed"], row["step"]]["heads"][row["pattern"]]))
        assert abs(max(map(max, row["score"])) - best) < 0.35  # on other texts
        assert len(row["fall"]) == 6 and all(len(each) == 8 for each in row["fall"])


def test_the_command_ablates_the_checkpoints_of_a_folder(tmp_path, tiny, capsys):
    save(tmp_path / "seed-3" / "step-0050", tiny.weights, tiny.config, tiny.tokenizer)
    heads.main([str(tmp_path), "--out", str(tmp_path / "out.json"), "--texts", "3"])
    first, second = json.loads((tmp_path / "out.json").read_text())
    assert (first["seed"], first["step"], first["pattern"]) == (3, 50, "pronoun to name")
    assert second["pattern"] == "induction" and second["measure"] > -0.1
    with pytest.raises(SystemExit, match="make tiny-history"):
        heads.main([str(tmp_path / "empty")])


# --- Other people's tools, through the Hugging Face export ----------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export(open_checkpoint("tiny"), "huggingface", folder, "F32")
    return folder


def recorded(tiny):
    ids = torch.tensor(tiny.tokenizer.encode(STORY))
    with watch(block, attend) as seen:
        logits = forward(tiny.weights, ids, tiny.config)
    blocks = [call["return"] for call in seen if call["def"] == "block"]
    return ids, logits, blocks, [call for call in seen if call["def"] == "attend"]


def test_transformer_lens_sees_the_same_streams_and_heads(exported, tiny):
    """Run with transformer-lens 4.3.0 beside torch 2.13.0; it is no dependency of this project."""
    bridge = pytest.importorskip("transformer_lens.model_bridge")
    ids, logits, blocks, heads_of = recorded(tiny)
    theirs = bridge.TransformerBridge.boot_transformers(
        str(exported), device="cpu", dtype=torch.float32
    )
    with torch.no_grad():
        found, cache = theirs.run_with_cache(ids[None])
    close(logits, found[0])
    for i in range(tiny.config.n_layers):
        close(blocks[i], cache[f"blocks.{i}.hook_out"][0])
        close(heads_of[i]["probabilities"], cache[f"blocks.{i}.attn.hook_pattern"][0])
    away = (blocks[2] - cache["blocks.3.hook_out"][0]).abs().max()
    assert away > 1e-2 * blocks[2].abs().max()  # the control: another layer


def test_nnsight_sees_the_same_streams(exported, tiny):
    """Run with nnsight 0.8.1 beside torch 2.13.0; it is no dependency of this project."""
    nnsight = pytest.importorskip("nnsight")
    transformers = pytest.importorskip("transformers")
    ids, logits, blocks, _ = recorded(tiny)
    plain = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    theirs = nnsight.LanguageModel(plain, tokenizer=tokenizer)
    with torch.no_grad(), theirs.trace(ids[None]):
        stream = theirs.model.layers[3].output.save()
        found = theirs.lm_head.output.save()
    close(logits, found[0])
    close(blocks[3], stream[0] if stream.dim() == 3 else stream)
    away = (blocks[2] - (stream[0] if stream.dim() == 3 else stream)).abs().max()
    assert away > 1e-2 * blocks[3].abs().max()  # the control: another layer
