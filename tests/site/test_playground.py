"""Compare the playground, in a real browser and opened from disk, with the package."""

import base64
import contextlib
import importlib.util
import shutil

import numpy as np
import pytest
import torch
from browsing import ROOT, chromium, need_a_browser, page_of, too_wide
from helpers import corpus, make_weights
from torch.nn import functional

from llama3_scratch import PROMPT, Config, Tokenizer, attend, forward, generate, load, watch
from llama3_scratch.config import RopeScaling
from llama3_scratch.generate import token_probabilities
from llama3_scratch.model import block, causal_mask, rms_norm, rotations_at
from llama3_scratch.model import layer as part
from llama3_scratch.quantize.packed import Int4
from llama3_scratch.quantize.rounding import rtn
from llama3_scratch.tiny.heads import without
from llama3_scratch.tokenizer import special_tokens

need_a_browser()

SITE = ROOT / "site"
CLOSE = 1e-4

PROMPTS = [
    PROMPT, "", " ", "a", "42", "Hello, world!", "Mia likes milk.", "3 + 4 = ", "12 + 30 =",
    "Mia is cold and Ben is hungry. What does Ben want?", "to be, or not to be,", "Who has a kite?",
    "the capital of France is", "three plus four is", "Mia has a red kite. She gives it to Ben.",
    "Read: tree door river. Again: tree", "once upon a midnight dreary, while\n\n", "1 2 3 4 5 6 7",
    "brevity is the soul of wit. " * 6, "From Monday to Friday: Monday",
]  # fmt: skip
PROMPTS += corpus(50 - len(PROMPTS), seed=1)

TO_BASE64 = """(tensor) => {
  const bytes = new Uint8Array(tensor.buffer, tensor.byteOffset, tensor.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) {
    text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  }
  return btoa(text);
}"""


def tensor(text, *shape):
    """Base64 of float32 numbers from the page -> a tensor."""
    numbers = np.frombuffer(bytearray(base64.b64decode(text)), dtype="<f4")
    return torch.from_numpy(numbers).view(*shape)


@pytest.fixture(scope="module")
def weights_js():
    """site/weights.py, which is not in a package."""
    spec = importlib.util.spec_from_file_location("weights_js", SITE / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny():
    weights, config, tokenizer = load("tiny", dtype=torch.float32)
    return dict(weights), config, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights_js):
    """The page with the tiny model beside it."""
    folder = tmp_path_factory.mktemp("playground")
    shutil.copytree(SITE / "playground", folder, dirs_exist_ok=True)
    weights_js.write(folder, *load("tiny"))
    weights_js.write_int4(folder, load("tiny-int4").weights)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser):
    """Return a function (folder, how) -> the loaded page. At the end: no error, no other host."""
    complaints = []
    with contextlib.ExitStack() as stack:

        def visit(folder, ready=".chip", **how):
            page, wrong = stack.enter_context(page_of(browser, folder.as_uri(), **how))
            complaints.append(wrong)
            page.goto((folder / "index.html").as_uri())
            page.wait_for_selector(ready)
            return page

        yield visit
        assert not any(complaints), complaints


@pytest.fixture
def page(visit, folder):
    return visit(folder)


def difference(page, weights, config, ids):
    """Return the largest difference of a logit, and of an attention probability, from ours."""
    T, V, N = len(ids), config.vocab_size, config.n_heads
    logits, *layers = page.evaluate(
        """(ids) => {
          const layers = [];
          const watch = (name, tensor) => name === "probabilities" && layers.push(tensor);
          const logits = forward(model.weights, ids, model.config, null, watch);
          return [logits, ...layers].map(TO_BASE64);
        }""".replace("TO_BASE64", TO_BASE64),
        ids,
    )
    with watch(attend) as seen:
        expected = forward(weights, torch.tensor(ids), config)
    assert len(layers) == len(seen) == config.n_layers
    in_logits = (tensor(logits, T, V) - expected).abs().max().item()
    pairs = zip(layers, seen, strict=True)
    in_layers = [(tensor(a, N, T, T) - b["probabilities"]).abs().max().item() for a, b in pairs]
    return in_logits, max(in_layers)


def test_logits_and_attention_agree_with_the_package_on_fifty_prompts(page, tiny):
    weights, config, tokenizer = tiny
    assert len(PROMPTS) == len(set(PROMPTS)) == 50
    found = [difference(page, weights, config, tokenizer.encode(prompt)) for prompt in PROMPTS]
    worst = [max(column) for column in zip(*found, strict=True)]
    print("\nlargest difference: logits {:.1e}, attention {:.1e}".format(*worst))
    assert max(worst) < CLOSE


@pytest.mark.parametrize("config", [
    Config(60, 3, 6, 2, 2048, 7, 1e-5, 500000.0, 0.48),
    Config(144, 2, 6, 6, 2048, 32, 1e-6, 10000.0, 1.3, RopeScaling(8.0)),
    Config(96, 2, 6, 1, 2048, 32, 1e-5, 500000.0, None, RopeScaling(32.0), tied_output=True),
], ids=["odd sizes", "multi-head, scaled RoPE", "multi-query, tied"])  # fmt: skip
def test_no_size_is_hard_coded(visit, weights_js, tiny, tmp_path, config):
    shutil.copytree(SITE / "playground", tmp_path, dirs_exist_ok=True)
    assert config.vocab_size == tiny[2].vocab_size
    weights = make_weights(config, torch.bfloat16)
    weights_js.write(tmp_path, weights, config, tiny[2])
    page = visit(tmp_path)
    assert len(page.query_selector_all("#heads button")) == config.n_layers * config.n_heads
    wide = {name: weight.float() for name, weight in weights.items()}
    ids = tiny[2].encode(PROMPT * 4)
    assert max(difference(page, wide, config, ids)) < CLOSE


def test_the_weights_have_the_same_bits(page, tiny):
    weights, _, _ = tiny
    assert page.evaluate("Object.keys(model.weights)") == list(weights)
    for name, expected in weights.items():
        text = page.evaluate(f"(name) => ({TO_BASE64})(model.weights[name])", name)
        assert torch.equal(tensor(text, *expected.shape), expected), name


SPACES = [chr(code) for code in (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, 0x180E)]
SPACES += [chr(code) for code in (*range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0x205F, 0x2060)]
SPACES += ["\u3000", "\ufeff", "\u200b"]


@pytest.fixture(scope="module")
def texts():
    texts = [*corpus(), *PROMPTS, "x" * 300, "é" * 200, " " * 300, *special_tokens(), "\ufeffa"]
    texts += [f"a{space}{space}b {space}c{space}\n{space}7{space}!" for space in SPACES]
    texts += [f"{first}'{end}{last}" for end in ("s", "S", "ſ", "re", "Re", "vE", "LL", "ll", "d")
              for first in ("", "a", " ") for last in ("", "x", " ")]  # fmt: skip
    return texts


def test_text_is_split_where_the_package_splits_it(visit, folder, texts):
    """With a vocabulary of all byte pairs, almost any wrongly joined pieces are noticed."""
    single = [bytes([i]) for i in range(256)]
    tokens = single + [a + b for a in single for b in single]
    pairs = Tokenizer({token: rank for rank, token in enumerate(tokens)})
    script = """([tokens, special, texts]) => {
      const tokenizer = new Tokenizer(tokens.map(atob), special, []);
      return texts.map((text) => tokenizer.encode(text));
    }"""
    coded = [base64.b64encode(token).decode() for token in tokens]
    found = visit(folder).evaluate(script, [coded, special_tokens(), texts])
    for text, ids in zip(texts, found, strict=True):
        assert ids == pairs.encode(text), repr(text)


def test_ids_and_text_equal_the_packages(visit, folder, tiny, texts):
    page, tokenizer = visit(folder), tiny[2]
    expected = [tokenizer.encode(text) for text in texts]
    encode = "([texts, ...how]) => texts.map((text) => model.tokenizer.encode(text, ...how))"
    for text, found, right in zip(texts, page.evaluate(encode, [texts]), expected, strict=True):
        assert found == right, repr(text)
    for allowed in ("all", ["<|eot_id|>"]):
        for text, found in zip(texts, page.evaluate(encode, [texts, False, allowed]), strict=True):
            right = tokenizer.encode(text, bos=False, allowed_special="".join(allowed))
            assert found == right, repr(text)
    cut = [ids[: 1 + len(ids) // 2] for ids in expected]
    decode = "(lists) => lists.map((ids) => model.tokenizer.decode(ids))"
    assert page.evaluate(decode, expected) == ["<|begin_of_text|>" + text for text in texts]
    assert page.evaluate(decode, [ids[1:] for ids in expected]) == texts
    assert page.evaluate(decode, cut) == [tokenizer.decode(ids) for ids in cut]


def test_generated_ids_equal_the_packages(page, tiny):
    weights, config, tokenizer = tiny
    for prompt in PROMPTS[:20]:
        ids = tokenizer.encode(prompt)
        for stop in ([], sorted(tokenizer.stop_ids)):
            script = """([ids, stop]) => Array.from(
              generate(model.weights, ids, model.config, 12, { stop }))"""
            right = list(generate(weights, ids, config, 12, stop=stop))
            assert page.evaluate(script, [ids, stop]) == right, prompt


def test_sampling_probabilities_agree_with_the_package(page):
    logits = 3 * torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    script = """([logits, temperature, topP]) => Array.from(
      tokenProbabilities(new Float32Array(logits), temperature, topP))"""
    for row in logits:
        for temperature in (0.05, 0.7, 1.0, 2.0):
            for top_p in (0.05, 0.5, 0.95, 1.0):
                found = page.evaluate(script, [row.tolist(), temperature, top_p])
                right = token_probabilities(row, temperature, top_p=top_p)
                assert torch.allclose(torch.tensor(found).float(), right, atol=1e-6)
        one = page.evaluate(script, [row.tolist(), 0, 0.5])
        assert one == [float(i == row.argmax()) for i in range(len(row))]


def test_draws_follow_the_probabilities(page):
    counts = page.evaluate("""() => {
      const logits = new Float32Array([0.5, 1, -1, 2, 0]);
      let seed = 1;
      const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
      const counts = [0, 0, 0, 0, 0];
      for (let i = 0; i < 40000; i++) counts[choose(logits, 1, 0.9, random)]++;
      return counts;
    }""")
    right = token_probabilities(torch.tensor([0.5, 1.0, -1.0, 2.0, 0.0]), 1.0, top_p=0.9)
    assert torch.allclose(torch.tensor(counts) / 40000, right, atol=0.01)
    assert counts[2] == 0


def shown_ids(page):
    return [int(text) for text in page.locator(".chip .id").all_inner_texts()]


def test_the_page_shows_the_packages_numbers(page, tiny):
    weights, config, tokenizer = tiny
    ids = tokenizer.encode(PROMPT)
    assert page.input_value("#prompt") == PROMPT and shown_ids(page) == ids
    logits = forward(weights, torch.tensor(ids), config)
    best = logits[-1].softmax(-1).topk(10)
    shown = page.locator("#next button")
    assert [int(b.get_attribute("data-id")) for b in shown.all()] == best.indices.tolist()
    assert shown.first.locator(".number").inner_text() == f"{best.values[0]:.3f}"
    rows = page.locator("#layers tr")
    assert rows.count() == config.n_layers + 1
    assert rows.last.locator("td").first.inner_text() == tokenizer.decode([best.indices[0]])
    assert rows.last.locator("td").last.inner_text() == "1"
    # another position: its prediction after the last layer, by the package
    page.locator(".chip").nth(5).click()
    with watch(forward) as seen:
        forward(weights, torch.tensor(ids[:6]), config)
    last = (seen[0]["normed"] @ weights["output.weight"].T)[5].softmax(-1)
    assert rows.last.locator(".number").inner_text() == f"{last.max():.3f}"


def test_the_residual_streams_agree_with_the_package(page, tiny):
    """The table of layers is made from the stream after the embedding and after each layer."""
    weights, config, tokenizer = tiny
    ids = tokenizer.encode(PROMPT)
    with watch(block) as seen:
        forward(weights, torch.tensor(ids), config)
    right = [weights["tok_embeddings.weight"][ids], *(call["return"] for call in seen)]
    script = f"() => state.positions.map((position) => position.stream.map({TO_BASE64}))"
    found = page.evaluate(script)
    for i, stream in enumerate(right):
        mine = torch.stack([tensor(position[i], config.dim) for position in found])
        assert (mine - stream).abs().max() < CLOSE


def weights_on_chips(page):
    texts = page.locator(".chip .weight").all_inner_texts()
    return [0.0 if text in ("", "<.001") else float(text) for text in texts]


def test_the_heatmap_follows_pointer_and_keys(page, tiny):
    weights, config, tokenizer = tiny
    ids = tokenizer.encode(PROMPT)
    with watch(attend) as seen:
        forward(weights, torch.tensor(ids), config)
    page.select_option("#layer", "1")
    page.select_option("#head", "2")
    rows = seen[1]["probabilities"][2]
    assert weights_on_chips(page) == pytest.approx(rows[-1].tolist(), abs=1e-3)
    cell = float(page.get_attribute("#heatmap", "data-cell"))
    page.hover("#heatmap", position={"x": 3.5 * cell, "y": 9.5 * cell})
    assert weights_on_chips(page) == pytest.approx(rows[9].tolist(), abs=1e-3)
    assert f"probability {rows[9, 3]:.3f}" in page.inner_text("#readout")
    page.mouse.move(0, 0)
    assert weights_on_chips(page) == pytest.approx(rows[-1].tolist(), abs=1e-3)
    page.focus("#heatmap")
    for key in ("ArrowUp", "ArrowUp", "Home", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert weights_on_chips(page) == pytest.approx(rows[2].tolist(), abs=1e-3)
    page.keyboard.press("Enter")
    assert page.locator(".chip[aria-selected=true] .id").inner_text() == str(ids[2])
    # the canvas is darker where the probability is larger
    darkness = page.evaluate("""() => {
      const canvas = get("heatmap");
      const cell = Number(canvas.dataset.cell) * devicePixelRatio;
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const pixel = (place) => Math.round((place + 0.5) * cell);
      const at = (t, s) => data[4 * (pixel(t) * canvas.width + pixel(s))];
      return state.positions.map((_, t) => state.positions.map((_, s) => 255 - at(t, s)));
    }""")
    for t in range(len(ids)):
        by_page = torch.tensor(darkness[t][: t + 1]).float()
        assert by_page.argmax() == rows[t].argmax()


def test_generating_and_editing_agree_with_the_package(page, tiny):
    """The page, with its cache and after every edit, agrees with the package without a cache."""
    weights, config, tokenizer = tiny
    text = "Mia likes milk and Ben likes tea. Mia"
    page.fill("#prompt", text)
    page.fill("#temperature", "0")
    right = tokenizer.encode(text)
    for _ in range(5):
        page.click("#step")
        right += list(generate(weights, right, config, 1))
        page.wait_for_function("(n) => state.positions.length === n", arg=len(right))
    assert shown_ids(page) == right
    assert page.inner_text("#text") == tokenizer.decode(right[1:])
    page.locator("#next button").nth(3).click()  # one that the reader chooses
    right.append(int(forward(weights, torch.tensor(right), config)[-1].topk(4).indices[3]))
    assert shown_ids(page) == right
    for edit in (text[:10], text, "", "the " + text, text[:-4] + " Otto"):
        page.fill("#prompt", edit)
        ids = tokenizer.encode(edit)
        page.wait_for_function("(n) => state.positions.length === n", arg=len(ids))
        assert shown_ids(page) == ids
        assert (logits_of(page) - forward(weights, torch.tensor(ids), config)).abs().max() < CLOSE
    page.fill("#prompt", "a <|eot_id|>")
    assert tokenizer.special["<|eot_id|>"] not in shown_ids(page)
    page.check("#special")
    assert shown_ids(page)[-1] == tokenizer.special["<|eot_id|>"]


# --- Changes inside -------------------------------------------------------------------------------

ONE, TWO = (f"Tom fears bees. Nora fears {what}. Ada fears cats. What does Nora fear? Nora fears"
            for what in ("wolves", "snakes"))  # fmt: skip
THERE = 7  # the position at which they differ


def logits_of(page, positions="state.positions"):
    """Return the logits [T, V] that the page has computed."""
    script = f"() => {positions}.map((position) => ({TO_BASE64})(position.logits))"
    return torch.stack([tensor(row, -1) for row in page.evaluate(script)])


def wait_for_changes(page, n):
    page.wait_for_function("(n) => state.changes.length === n && idle()", arg=n)


@pytest.fixture
def pair(page):
    """The page with the prompts ONE and TWO, of as many tokens."""
    page.evaluate("""() => { window.idle = () => !state.reading
      && get('changes').children.length === state.changes.length
      && (state.changes.length === 0) === (state.plain[0] === state.positions[0]); }""")
    page.click("#pair")
    page.wait_for_function("(text) => get('text').textContent === text && idle()", arg=ONE)
    assert page.input_value("#other") == TWO
    return page


def switch_off(page, layer, head):
    page.locator(f"#heads button[data-layer='{layer}'][data-head='{head}']").click()
    page.locator("#off").click()


def test_heads_are_switched_off_as_in_the_package(pair, tiny):
    weights, config, tokenizer = tiny
    page, ids = pair, torch.tensor(tokenizer.encode(ONE))
    plain = forward(weights, ids, config)
    off = [(3, 1), (0, 4), (5, 7)]
    for n in range(1, 4):
        switch_off(page, *off[n - 1])
        wait_for_changes(page, n)
        right = forward(weights, ids, config, attend=without(*off[:n]))
        assert (logits_of(page) - right).abs().max() < CLOSE
        assert (logits_of(page, "state.plain") - plain).abs().max() < CLOSE
        fewer = forward(weights, ids, config, attend=without(*off[: n - 1]))  # the control
        assert (right - fewer).abs().max() > 100 * CLOSE
    # what the page says of it
    before, after = (logits[-1].softmax(-1) for logits in (plain, right))
    rows = page.locator("#comparison tr")
    shown = set(rows.locator("th").all_inner_texts())
    best = [*before.topk(5).indices.tolist(), *after.topk(5).indices.tolist()]
    assert shown == {tokenizer.decode([token]).replace(" ", "·") for token in best}
    numbers = rows.first.locator(".number").all_inner_texts()
    assert numbers == [f"{before.max():.3f}", f"{after[before.argmax()]:.3f}"]
    names = page.locator("#heads button.off").evaluate_all("(all) => all.map((b) => b.ariaLabel)")
    assert names == [f"layer {i}, head {n}, switched off" for i, n in sorted(off)]
    far = functional.kl_div(right.log_softmax(-1), plain.log_softmax(-1), log_target=True,
                            reduction="none")[-1].sum()  # fmt: skip
    assert f"{far:.3f} nats" in page.inner_text("#measure")
    # the changed model goes on, with its cache; then the changes are undone
    page.fill("#temperature", "0")
    page.click("#step")
    page.wait_for_function("() => state.positions.length === 21 && idle()")
    ids = torch.cat([ids, right[-1:].argmax(-1)])
    right = forward(weights, ids, config, attend=without(*off))
    assert (logits_of(page) - right).abs().max() < CLOSE
    page.locator("#changes button").nth(1).click()
    wait_for_changes(page, 2)
    right = forward(weights, ids, config, attend=without(off[0], off[2]))
    assert (logits_of(page) - right).abs().max() < CLOSE
    page.click("#undo-all")
    wait_for_changes(page, 0)
    assert (logits_of(page) - forward(weights, ids, config)).abs().max() < CLOSE
    assert not page.is_visible("#compared") and not page.is_visible("#changed")


def patched(tiny, here, there, what, layer, head, into, taken):
    """Return the logits for `here`, with one vector from the run of `there`."""
    weights, config, tokenizer = tiny
    runs = {}
    for name, text in (("there", there), ("here", here)):
        ids = torch.tensor(tokenizer.encode(text))
        positions = torch.arange(len(ids))
        rotations, mask = rotations_at(positions, config), causal_mask(positions, len(ids))
        stream, outputs = weights["tok_embeddings.weight"][ids], []
        runs[name] = streams, _ = [], outputs

        def attend_patched(*arguments, patching=name == "here", outputs=outputs):
            new = attend(*arguments).clone()
            if patching and what == "outputs" and len(outputs) == layer:
                new[into, head] = runs["there"][1][layer][taken, head]
            outputs.append(new)
            return new

        for i in range(config.n_layers + 1):
            if name == "here" and what == "stream" and i == layer:
                stream[into] = runs["there"][0][layer][taken]
            streams.append(stream.clone())
            if i < config.n_layers:
                inside = part(weights, i)
                stream = block(stream, inside, rotations, mask, config, attend=attend_patched)
    return (rms_norm(stream, weights["norm.weight"], config.norm_eps)) @ weights["output.weight"].T


@pytest.mark.parametrize(("what", "layer", "head", "into", "taken"), [
    ("stream", 0, 0, THERE, THERE), ("stream", 4, 0, THERE, THERE), ("stream", 6, 0, 19, 19),
    ("stream", 3, 0, 12, THERE), ("outputs", 3, 1, 19, 19), ("outputs", 2, 6, 8, 11),
])  # fmt: skip
def test_a_patch_is_that_of_the_package(pair, tiny, what, layer, head, into, taken):
    weights, config, tokenizer = tiny
    page, stream = pair, what == "stream"
    page.select_option("#what", what)
    names = ["embedding", *map(str, range(config.n_layers))]
    page.select_option("#patch-layer", label=names[layer if stream else layer + 1])
    assert page.is_disabled("#patch-head") == stream
    if not stream:
        page.select_option("#patch-head", str(head))
    page.select_option("#from", str(taken))
    assert page.input_value("#to") == str(taken)  # until another one is chosen
    page.select_option("#to", str(into))
    page.click("#patch")
    wait_for_changes(page, 1)
    right = patched(tiny, ONE, TWO, what, layer, head, into, taken)
    assert (logits_of(page) - right).abs().max() < CLOSE
    plain = forward(weights, torch.tensor(tokenizer.encode(ONE)), config)
    assert (right - plain).abs().max() > 100 * CLOSE  # the control: the patch does something,
    assert torch.equal(right[:into], plain[:into])  # and not before its position
    if (what, layer) == ("stream", 0):  # the token itself is exchanged
        other = forward(weights, torch.tensor(tokenizer.encode(TWO)), config)
        assert (logits_of(page) - other).abs().max() < CLOSE
    elif (what, layer) == ("stream", 6):  # after the last layer only this position's answer is
        assert (right - plain).abs().amax(-1).nonzero().flatten().tolist() == [into]


def test_a_patch_where_the_runs_agree_changes_nothing(pair, tiny):
    page = pair
    page.select_option("#patch-layer", label="4")
    page.select_option("#from", str(THERE - 1))
    page.click("#patch")
    wait_for_changes(page, 1)
    assert torch.equal(logits_of(page), logits_of(page, "state.plain"))
    assert "still its answer" in page.inner_text("#effect")


def test_patches_follow_the_prompts(pair, tiny):
    """The second prompt is run again when it changes; a patch whose position is gone goes too."""
    page = pair
    page.select_option("#patch-layer", label="embedding")
    page.select_option("#from", str(THERE))
    page.click("#patch")
    wait_for_changes(page, 1)
    assert "“·snakes”" in page.inner_text("#changes")
    page.fill("#other", TWO.replace("snakes", "birds"))
    page.wait_for_function("() => get('changes').textContent.includes('·birds')")
    right = patched(tiny, ONE, TWO.replace("snakes", "birds"), "stream", 0, 0, THERE, THERE)
    assert (logits_of(page) - right).abs().max() < CLOSE
    page.fill("#other", TWO)
    page.click("#exchange")
    page.wait_for_function("(text) => get('text').textContent === text && idle()", arg=TWO)
    assert page.input_value("#other") == ONE
    right = patched(tiny, TWO, ONE, "stream", 0, 0, THERE, THERE)
    assert (logits_of(page) - right).abs().max() < CLOSE
    page.fill("#prompt", "Tom fears bees.")
    wait_for_changes(page, 0)
    assert page.locator("#to option").count() == 5
    page.fill("#other", "")
    page.wait_for_function("() => get('patch').disabled")


def test_the_weights_of_4_bits_are_those_of_the_package(pair, tiny):
    weights, config, tokenizer = tiny
    int4 = load("tiny-int4", dtype=torch.float32).weights
    matrices = {name for name in int4 if isinstance(int4[name], Int4)}
    assert {name for name in int4 if name.startswith("layers") and "norm" not in name} == matrices
    page = pair
    assert page.evaluate("() => typeof INT4") == "undefined"  # it is loaded on demand
    page.check("#int4")
    wait_for_changes(page, 1)
    for name in weights:
        found = tensor(page.evaluate(f"(name) => ({TO_BASE64})(model.int4[name])", name), -1)
        right = int4[name].dequantize() if name in matrices else weights[name]
        assert torch.equal(found.view_as(right), right), name
        assert torch.equal(right, weights[name]) == (name not in matrices)  # the control
    ids = torch.tensor(tokenizer.encode(ONE))
    wide = {name: int4[name].dequantize() if name in matrices else weights[name] for name in int4}
    right, plain = (forward(some, ids, config) for some in (wide, weights))
    assert (logits_of(page) - right).abs().max() < CLOSE
    assert (logits_of(page, "state.plain") - plain).abs().max() < CLOSE
    assert (right - plain).abs().max() > 100 * CLOSE
    best = plain[-1].argmax()
    before, after = (float(logits[-1].softmax(-1)[best]) for logits in (plain, right))
    row = page.locator("#comparison tr").first
    assert row.locator(".number").all_inner_texts() == [f"{before:.3f}", f"{after:.3f}"]
    difference = float(row.locator("td").last.inner_text().replace("−", "-"))
    assert difference == pytest.approx(after - before, abs=6e-4)
    switch_off(page, 3, 1)  # together with another change
    wait_for_changes(page, 2)
    right = forward(wide, ids, config, attend=without((3, 1)))
    assert (logits_of(page) - right).abs().max() < CLOSE
    page.uncheck("#int4")
    wait_for_changes(page, 1)
    right = forward(weights, ids, config, attend=without((3, 1)))
    assert (logits_of(page) - right).abs().max() < CLOSE


@pytest.mark.parametrize("shape", [(7, 33, 32), (5, 45, 7), (4, 64, None)])
def test_a_matrix_of_4_bits_may_have_any_shape(page, weights_js, shape):
    rows, n, group = shape
    matrix = torch.randn(rows, n, generator=torch.Generator().manual_seed(rows))
    four = Int4(rtn(matrix, 4, group))
    found = page.evaluate(f"(m) => ({TO_BASE64})(dequantize(m))", weights_js._four_bits(four))
    assert torch.equal(tensor(found, rows, n), four.dequantize())


def test_missing_weights_of_4_bits_are_reported(browser, folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "weights-int4.js").unlink()
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_selector(".chip")
    page.click("#int4")
    page.wait_for_function("() => get('message').textContent.includes('weights-int4.js')")
    assert not page.is_checked("#int4")
    page.close()


def test_changes_by_keyboard_alone(pair):
    page = pair
    page.focus("#layer")
    for _ in range(4):  # the head's list, its checkbox, the heatmap, the heads
        page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.closest('#heads') !== null")
    page.keyboard.press("Home")
    page.keyboard.press("Delete")
    wait_for_changes(page, 1)
    assert page.evaluate("() => document.activeElement.ariaLabel").endswith("0, switched off")
    said = page.text_content("#announce")
    assert said == page.inner_text("#effect") and "“·wolves” had probability 0.999" in said
    page.focus("#from")
    page.keyboard.press("Home")
    for _ in range(THERE):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "patch"
    page.keyboard.press("Enter")
    wait_for_changes(page, 2)
    for _ in range(2):  # the weights of 4 bits, the first button in the list
        page.keyboard.press("Tab")
    for left in (1, 0):  # each is undone, and the focus stays where one can go on
        assert page.evaluate("() => document.activeElement.textContent") == "Undo"
        page.keyboard.press("Enter")
        wait_for_changes(page, left)
    assert page.evaluate("() => document.activeElement.id") == "other"
    assert page.text_content("#announce") == "The model is unchanged."


def test_a_run_can_be_stopped(page):
    page.fill("#temperature", "0")
    page.fill("#prompt", "Mia likes milk and Ben likes tea. Mia")
    before = len(shown_ids(page))
    page.click("#run")
    assert page.inner_text("#run") == "Stop"
    page.wait_for_function("(n) => state.positions.length > n", arg=before + 2)
    page.click("#run")
    page.wait_for_function("() => !state.running")
    assert page.inner_text("#run") == "Run"
    page.click("#reset")
    assert len(shown_ids(page)) == before
    page.fill("#prompt", "word " * 400)
    page.wait_for_function("() => state.positions.length === LIMIT")
    assert "takes the first 256" in page.inner_text("#message")
    page.click("#run")
    page.wait_for_function("() => !state.running")
    assert len(shown_ids(page)) == 256


def test_the_page_works_by_keyboard_alone(page):

    def tab_to(selector):
        for _ in range(60):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no Tab leads to {selector}")

    tab_to("#prompt")
    page.keyboard.press("Control+a")
    page.keyboard.type("Mia likes milk. Mia")
    page.wait_for_function("() => state.promptLength && get('text').textContent.endsWith('Mia')")
    before = len(shown_ids(page))
    tab_to("#step")
    page.keyboard.press("Enter")
    tab_to("#temperature")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#temperature-value") == "0.95"
    tab_to("#next button")
    page.keyboard.press("Enter")
    page.wait_for_function("(n) => state.positions.length === n", arg=before + 2)
    tab_to(".chip")
    page.keyboard.press("ArrowLeft")
    chosen = page.evaluate("() => [chosen(), document.activeElement.ariaSelected]")
    assert chosen == [before, "true"]
    tab_to("#heatmap")
    page.keyboard.press("ArrowUp")
    assert f"({before - 1})" in page.inner_text("#readout")
    tab_to("#heads button")
    for key in ("Home", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert [page.input_value("#layer"), page.input_value("#head")] == ["1", "1"]
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_follows_the_theme(visit, folder, width, scheme):
    how = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    page = visit(folder, **how, has_touch=width < 500)
    page.fill("#prompt", "I wandered lonely as a cloud that floats on high. " + "w" * 120)
    page.fill("#other", "I wandered lonely " + "w" * 120)
    page.click("#patch")
    page.click("#off")
    page.wait_for_selector("#changes li:nth-child(2)")
    assert too_wide(page) == 0
    small = page.evaluate("""() => Array.from(
      document.querySelectorAll("button, select, input, .chip, textarea"),
      (element) => element.getBoundingClientRect(),
    ).filter(({ width, height }) => width < 24 || height < 24).length""")
    assert small == 0

    ground = "getComputedStyle(document.body).backgroundColor"
    by_system = page.evaluate(ground)

    def wait_for(expected):  # the page learns of a change a little later
        page.wait_for_function(f"() => ({ground} === '{by_system}') === {expected}", timeout=5000)

    other = "dark" if scheme == "light" else "light"
    assert page.input_value("#theme") == "auto"
    page.emulate_media(color_scheme=other)
    wait_for("false")
    page.select_option("#theme", scheme)
    wait_for("true")
    page.reload()
    assert page.input_value("#theme") == scheme  # it is remembered
    wait_for("true")
    page.select_option("#theme", "auto")
    wait_for("false")


@pytest.mark.parametrize("script", [
    "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no'); } })",
    "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }",
])  # fmt: skip
def test_the_page_works_where_storage_is_denied_or_full(browser, folder, script):
    page = browser.new_page(color_scheme="light")
    page.add_init_script(script)
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector(".chip")
    assert page.locator(".chip").count() == 17
    page.select_option("#theme", "dark")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'", timeout=5000)
    page.close()


def test_missing_weights_are_reported(browser, tmp_path):
    shutil.copytree(SITE / "playground", tmp_path, dirs_exist_ok=True)
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_function("() => get('message').textContent.includes('weights.js')")
    page.close()
