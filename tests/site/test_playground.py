"""Compare the playground, in a real browser and opened from disk, with the package."""

import base64
import contextlib
import importlib.util
import shutil

import numpy as np
import pytest
import torch
from browsing import ROOT, chromium, page_of, too_wide
from helpers import corpus, make_weights

from llama3_scratch import PROMPT, Config, Tokenizer, attend, forward, generate, load, watch
from llama3_scratch.config import RopeScaling
from llama3_scratch.generate import token_probabilities
from llama3_scratch.tokenizer import special_tokens

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
    from llama3_scratch.model import block

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
        script = f"() => state.positions.map((position) => ({TO_BASE64})(position.logits))"
        logits = torch.stack([tensor(row, -1) for row in page.evaluate(script)])
        assert (logits - forward(weights, torch.tensor(ids), config)).abs().max() < CLOSE
    page.fill("#prompt", "a <|eot_id|>")
    assert tokenizer.special["<|eot_id|>"] not in shown_ids(page)
    page.check("#special")
    assert shown_ids(page)[-1] == tokenizer.special["<|eot_id|>"]


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
    page.wait_for_timeout(100)
    assert too_wide(page) == 0
    small = page.evaluate("""() => Array.from(
      document.querySelectorAll("button, select, input, .chip, textarea"),
      (element) => element.getBoundingClientRect(),
    ).filter(({ width, height }) => width < 24 || height < 24).length""")
    assert small == 0

    ground = "getComputedStyle(document.body).backgroundColor"
    by_system = page.evaluate(ground)

    def wait_for(expected):  # the page learns of a change a little later
        page.wait_for_function(f"({ground} === '{by_system}') === {expected}", timeout=5000)

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
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'", timeout=5000)
    page.close()


def test_missing_weights_are_reported(browser, tmp_path):
    shutil.copytree(SITE / "playground", tmp_path, dirs_exist_ok=True)
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_function("() => get('message').textContent.includes('weights.js')")
    page.close()
