"""images/: every figure is the one that draw.py draws, and an <img> tag shows it legibly."""

import importlib.util
import re
from xml.etree import ElementTree

import pytest
import torch
from helpers import ROOT

FOLDER = ROOT / "images"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=sorted(path.name for path in FOLDER.glob("*.svg")))
def path(request):
    return FOLDER / request.param


@pytest.fixture
def root(path):
    return ElementTree.parse(path).getroot()


def test_the_folder_has_what_draw_py_draws(draw, tmp_path):
    draw.main(tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stored = {path.name: path.read_bytes() for path in FOLDER.glob("*.svg")}
    assert drawn.keys() == stored.keys() == {f"{name}.svg" for name in draw.ALT}
    old = [name for name in drawn if drawn[name] != stored[name]]
    assert not old, f"{old} are not what draw.py draws: run `make images`."


def test_computed_values_are_float64(draw):
    """Otherwise rounded coordinates would sometimes differ between machines."""
    values = [value for value in draw.computed().values() if isinstance(value, torch.Tensor)]
    assert len(values) >= 4 and {value.dtype for value in values} == {torch.float64}


def test_a_figure_is_described_for_readers_who_cannot_see_it(path, root, draw):
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    for name, said in (("title", path.stem.replace("_", " ")), ("desc", draw.ALT[path.stem])):
        (element,) = root.findall(f"{SVG}{name}")
        assert element.text == said
        assert element.get("id") in root.get("aria-labelledby").split()
    assert 60 < len(draw.ALT[path.stem]) < 500


def test_a_figure_loads_nothing_and_its_text_is_text(path, root):
    source = path.read_text(encoding="utf-8")
    hosts = re.findall(r"\w+://[^\s\"<]+", source.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    words = ("href", "url(", "prefers-color-scheme")
    assert not hosts and not any(word in source for word in words)
    assert len(source.encode()) < 150_000
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert "text" in tags
    assert tags <= {"svg", "title", "desc", "text", "tspan", "rect", "circle", "path"}


def test_a_figure_fits_the_column_and_is_legible(root, draw):
    """Its own light background is first and fills it; nothing depends on the page's theme."""
    width, height = root.get("width"), root.get("height")
    assert width == "690" and root.get("viewBox") == f"0 0 {width} {height}"
    texts = root.findall(f"{SVG}text")
    assert all(float(text.get("font-size")) >= 11 for text in texts)
    assert all(text.text or text[0].text for text in texts)
    for text in texts:
        assert 8 < float(text.get("x")) < 682 and 8 < float(text.get("y")) < int(height) - 8
    card = next(element for element in root if element.tag == f"{SVG}rect")
    assert card.get("fill") == draw.CARD and float(card.get("width")) == 689
    assert float(card.get("height")) == int(height) - 1


def luminance(colour):
    """WCAG 2's relative luminance of "#rrggbb"."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_contrasts_with_every_background(draw):
    """WCAG AA, 4.5 to 1, on the card, on the panels and in the boxes of all colours."""
    inks = draw.INK, draw.MUTED, draw.STREAM, draw.QUERY, draw.KEY, draw.VALUE, draw.FFN
    grounds = [draw.CARD, draw.PANEL]
    for ink in inks:
        for ground in grounds:
            assert luminance(ground) + 0.05 >= 4.5 * (luminance(ink) + 0.05), (ink, ground)
    for ink in (draw.INK, draw.MUTED):
        for colour in (*inks, draw.NORM):
            ground = draw.tint(colour, 0.15)
            assert luminance(ground) + 0.05 >= 4.5 * (luminance(ink) + 0.05), (ink, colour)


def test_the_drawn_merges_are_the_tokenizers(draw):
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5}
    steps = list(draw.merges(b"abcab", ranks))
    assert [new for _, new in steps] == [None, 0, 2, 0]
    assert steps[-1][0] == [b"abc", b"ab"]
