"""The project around the package: what the README, the Makefile and the pictures promise."""

import importlib
import json
import re
import subprocess
import sys
import tomllib

import pytest
import torch
from helpers import ROOT

import llama3_scratch
from llama3_scratch.checkpoint.source import TINY


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readmes_commands_exist():
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text("README.md"), re.M))
    assert "make test" in text(".ci/run")  # CI calls the README's own test command
    done = subprocess.run([sys.executable, "make.py"], cwd=ROOT, capture_output=True, text=True)
    targets = set(re.findall(r"^  ([a-z0-9-]+) ", done.stdout, re.M))
    assert {"lab", "test", "run", "help"} <= named <= targets


def test_the_readmes_example_runs():
    example = re.search(r"```python\n(.*?)```", text("README.md"), re.S)[1]
    names = {}
    *lines, last = example.strip().splitlines()
    exec("\n".join(lines), names)
    shape = json.loads(re.search(r"\[17, \d+\]", example)[0])
    assert list(names["logits"].shape) == shape
    assert repr(eval(last, names)) == last.rpartition("# ")[2]


def test_the_readmes_numbers_are_right():
    readme, count = text("README.md"), len(tomllib.loads(text("tests/core/mutations.toml")))
    _, config, _ = llama3_scratch.load("tiny")
    assert f"{config.n_parameters / 1e6:.1f} million parameters" in readme
    size = (TINY / "consolidated.00.pth").stat().st_size
    assert f"{size / 1e6:.0f} MB" in readme
    assert f"{count} one-line mistakes" in readme


def test_the_tiny_model_answers_both_texts_of_the_book():
    """The prompt is memorised; the story's answer is looked up, so it follows the names."""
    weights, config, tokenizer = llama3_scratch.load("tiny", torch.float32)
    story = llama3_scratch.STORY
    swapped = story.replace("Ben", "Ann").replace("Mia", "Ben").replace("Ann", "Mia")
    texts = {llama3_scratch.PROMPT: "42", story: " Ben", swapped: " Mia"}
    for prompt, answer in texts.items():
        tokens = torch.tensor(tokenizer.encode(prompt))
        probabilities = llama3_scratch.forward(weights, tokens, config)[-1].softmax(-1)
        assert tokenizer.decode([probabilities.argmax()]) == answer
        assert probabilities.max() > 0.9


def test_links_have_targets():
    for path in [ROOT / "README.md", *(ROOT / "llama3_scratch" / "tiny").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if not target.startswith("https://"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_wheel_has_its_metadata():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert {"notebooks", "test", "site"} <= project["optional-dependencies"].keys()
    assert "torch>=2.10" in project["dependencies"]
    assert f"## {llama3_scratch.__version__}" in text("CHANGELOG.md")


def test_the_base_install_needs_no_extra():
    """The package and its command line import nothing that only the extras bring."""
    extras = "matplotlib jupyterlab IPython pytest hypothesis llama_models transformers fairscale"
    code = (
        "import sys, llama3_scratch.__main__; "
        f"print([name for name in {extras.split()} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_pictures_without_matplotlib_give_one_clear_message(monkeypatch):
    """The control: with it the module is imported."""
    monkeypatch.setattr(llama3_scratch, "plots", importlib.import_module("llama3_scratch.plots"))
    monkeypatch.delitem(sys.modules, "llama3_scratch.plots")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib.pyplot", None)
        with pytest.raises(llama3_scratch.InputError, match=r"pip install 'llama3-scratch\[noteb"):
            importlib.import_module("llama3_scratch.plots")
    importlib.import_module("llama3_scratch.plots")


def test_the_lock_file_agrees_with_the_pinned_versions():
    """uv.lock and constraints.txt name the same versions, from the public index, with hashes."""
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", text("constraints.txt"), re.M))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    locked = tomllib.loads(text("uv.lock"))
    assert set(re.findall(r"https://[^/\"]+", text("uv.lock"))) == {
        "https://pypi.org", "https://files.pythonhosted.org",
    }  # fmt: skip
    packages = [each for each in locked["package"] if "registry" in each["source"]]
    versions = {package["name"]: package for package in packages}
    for name, package in versions.items():
        assert package["version"] == pins.get(name, package["version"]), name
        files = [package.get("sdist"), *package.get("wheels", [])]
        assert all(file["hash"].startswith("sha256:") for file in files if file)
    tools = {each["name"]: each["specifier"] for each in locked["manifest"]["build-constraints"]}
    assert tools == {name: f"=={pins[name]}" for name in tools} and "setuptools" in tools
    project = tomllib.loads(text("pyproject.toml"))
    assert project["build-system"]["requires"] == [f"hatchling=={pins['hatchling']}"]
    builders = {*tools, "pip", "pathspec", "tomlkit", "trove-classifiers", "coverage"}
    builders |= {"httpcore2", "httpx2"}
    assert pins.keys() - versions.keys() <= builders


def test_the_oldest_versions_that_ci_runs_are_the_lower_bounds():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["notebooks"], *extras["test"]]
    bounds = dict(each.split(">=") for each in needs if ">=" in each)
    oldest = dict(re.findall(r"^([\w-]+)==([\d.]+?)(?:\.\*)?$", text(".ci/oldest.txt"), re.M))
    assert oldest.keys() == bounds.keys() - {"axe-playwright-python"}

    def numbers(version):
        return [int(part) for part in version.split(".") if part != "0"]

    for name, version in oldest.items():
        assert numbers(version) == numbers(bounds[name]), name


def test_workflows_are_pinned_by_hash_and_write_as_little_as_they_need():
    """Each action by its commit; a job that may write runs no code of the project."""
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = path.read_text(encoding="utf-8")
        uses = re.findall(r"uses: (\S+)", workflow)
        assert uses and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in uses)
        top, *jobs = re.split(r"^  (?=[\w-]+:$)", workflow.partition("\njobs:")[2], flags=re.M)
        assert "\npermissions:\n  contents: read\n" in workflow
        for job in jobs:
            if ": write" in job:
                assert "actions/checkout" not in job and "python" not in job
