"""The command line, as a user meets it."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import BYTES, ROOT, SMALL, make_weights

import llama3_scratch
from llama3_scratch import PROMPT, Tokenizer, forward, generate, load, save
from llama3_scratch.__main__ import RUN, main
from llama3_scratch.checkpoint import memory, meta

RATE = r": \d+ tokens in [\d.]+ s, [\d.]+ per second"
SPEED = rf"\(prompt{RATE}(; then{RATE})?\)\n"


def run(*arguments, **kwargs):
    command = [sys.executable, "-m", "llama3_scratch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_the_default_prompt_is_answered_with_42():
    done = run()
    assert done.returncode == 0 and re.fullmatch(SPEED, done.stderr)
    assert "17 tokens" in done.stdout and "'<|begin_of_text|>'" in done.stdout
    assert "[T, D]" in done.stdout and "Llama-3-8B [17, 4096]" in done.stdout
    top = done.stdout.partition("probability\n")[2].splitlines()[:5]
    assert len(top) == 5 and top[0].split()[0] == "'42'"
    assert done.stdout.endswith(f"\n{PROMPT}42\n")


def test_the_printed_text_is_the_computed_text(capsys):
    arguments = ["Ben likes tea.", "--max-new", "9", "--temperature", "0.9", "--top-p", "0.95"]
    assert main([*arguments, "--seed", "4", "--dtype", "float32"]) == 0
    shown = capsys.readouterr().out
    weights, config, tokenizer = load("tiny", torch.float32)
    tokens = tokenizer.encode("Ben likes tea.")
    new = generate(weights, tokens, config, 9, temperature=0.9, top_p=0.95, seed=4,
                   stop=tokenizer.stop_ids)  # fmt: skip
    assert shown.endswith("\nBen likes tea." + tokenizer.decode(list(new)) + "\n")
    for token in tokens:
        assert f"{tokenizer.decode([token])!r} {token}" in shown


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"llama3-scratch {llama3_scratch.__version__}\n"


FLAGS = ["--checkpoint", "--max-new", "--temperature", "--top-p", "--seed", "--device", "--dtype"]


@pytest.mark.parametrize(("command", "words"), [
    ([], [*FLAGS, "LLAMA3_CHECKPOINT", "default", "'chat'", "'verify'", "'export'", "--json"]),
    (["chat"], [*FLAGS, "--template", "{meta,huggingface}"]),
    (["verify"], ["DIR", "--against", "{published,transformers}", "--json"]),
    (["export"], ["DIR", "OUT", "--to", "{huggingface,gguf,meta}", "--dtype", "--type", "Q8_0"]),
])  # fmt: skip
def test_help_names_every_option_of_a_command(command, words, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0
    assert shown.startswith(" ".join(["usage: llama3-scratch", *command]))
    for word in words:
        assert word in shown
    for word, where in (("--system", ["chat"]), ("FAULT", ["verify"])):
        assert (word in shown) == (command == where)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [["--", "chat"], ["--max-new", "2", "verify"], ["Verify"]])
def test_a_prompt_may_be_a_commands_name(arguments, capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"\n\n{arguments[-1]}" in shown and "'<|begin_of_text|>'" in shown


@pytest.mark.parametrize(("arguments", "says"), [
    (["--checkpoint", "nowhere"], "'nowhere' is not a checkpoint: expected a folder"),
    (["--device", "abacus"], "device abacus cannot be used here"),
    (["--device", "meta"], "device meta cannot be used here"),
    (["--max-new", "-1"], "max_new is -1"), (["--max-new", "100000"], "expected at most 8192"),
    (["--temperature", "-1"], "temperature is -1.0"), (["--top-p", "0"], "top_p is 0.0"),
    (["--temperature", "nan"], "temperature is nan"), (["--dtype", "int8"], "choice: 'int8'"),
    (["--max-new", "many"], "invalid int value: 'many'"), (["verify"], "DIR"),
    (["--seed", "9" * 30], "a number of 64 bits"), (["export", "tiny", "out"], "--to"),
    (["export", "nowhere", "--to", "meta", "out"], "'nowhere' is not a checkpoint"),
    (["chat", "--template", "chatml"], "choice: 'chatml'"),
    (["verify", "tiny", "--against", "llama.cpp"], "choice: 'llama.cpp'"),
])  # fmt: skip
def test_mistakes_give_one_message_and_exit_code_2(arguments, says, capsys):
    try:
        code = main(arguments)
    except SystemExit as done:
        code = done.code
    shown = capsys.readouterr()
    assert code == 2 and says in shown.err and "Traceback" not in shown.err
    assert len(shown.err.splitlines()) <= 24 and shown.out == ""


def test_the_environment_variable_names_a_checkpoint_and_the_shell_sees_a_mistake(tmp_path):
    done = run("ab", env=os.environ | {"LLAMA3_CHECKPOINT": str(tmp_path / "mine")})
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: '") and "mine' is not a checkpoint" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(("arguments", "encoding", "to", "code"), [
    (["caf\u00e9 \U0001f999"], "ascii", os.devnull, 0), ([b"caf\xe9"], "", os.devnull, 0),
    (["ab", "--temperature", "1e-300"], "", os.devnull, 0), (["full"], "", "/dev/full", 2),
], ids=["ascii terminal", "not UTF-8", "temperature near 0", "disk full"])  # fmt: skip
@pytest.mark.thorough
def test_unusual_input_and_output_give_no_traceback(arguments, encoding, to, code):
    if not os.path.exists(to):
        pytest.skip("this system has no /dev/full")
    with open(to, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "llama3_scratch", *arguments], stdout=stdout,
            stderr=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": encoding},
        )  # fmt: skip
    assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr


def test_too_little_memory_gives_one_message(monkeypatch, capsys):
    def no_memory(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setitem(RUN, "", no_memory)
    assert main([]) == 2 and "too little memory" in capsys.readouterr().err


def test_max_new_0_prints_only_the_tokens(capsys):
    assert main(["--max-new", "0"]) == 0
    shown = capsys.readouterr().out
    assert "17 tokens" in shown and shown.endswith(f"\n{PROMPT}\n")


def test_a_large_checkpoint_is_opened_once_and_loaded_by_the_printed_plan(monkeypatch, capsys):
    """The plan is for this prompt and this --max-new; `load` makes no plan of its own.

    A small checkpoint, the control, prints none; a missing device still gives one message.
    """
    assert main(["--max-new", "3"]) == 0
    assert re.fullmatch(SPEED, capsys.readouterr().err)
    plans, opened, plan, read = [], [], memory.plan, meta.read_weights

    def planned(*arguments):
        plans.append((arguments[3:5], plan(*arguments)))
        return plans[-1][1]

    monkeypatch.setattr(memory, "plan", planned)
    monkeypatch.setattr(meta, "read_weights", lambda *a: opened.append(a) or read(*a))
    monkeypatch.setattr("llama3_scratch.__main__.LARGE", 1000)
    assert main(["--max-new", "3"]) == 0
    said = capsys.readouterr()
    assert re.search(r"needs +0\.007 GB  weights\n(.*\n)*has .*[(]RAM[)]", said.err)
    assert "memory-mapped: " in said.err and "42" in said.out
    [(sizes, made)] = plans
    assert sizes == (17, 20) and str(made) in said.err and len(opened) == 1
    assert main(["--device", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: device nowhere cannot be used here")


@pytest.mark.thorough
def test_a_long_prompt_passes_in_chunks_and_is_not_printed_whole(capsys):
    assert main(["Ben likes tea. " * 400, "--max-new", "3"]) == 0
    shown = capsys.readouterr()
    n, _, printed = shown.out.partition(" tokens\n")
    assert int(n.split()[-1]) > 1024 and printed.count("'") < 300 and "..." in printed
    assert re.fullmatch(SPEED, shown.err) and "residual stream" not in shown.out


@pytest.mark.skipif(sys.platform == "win32", reason="closes streams by a POSIX shell")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.thorough
def test_streams_may_be_closed(closed):
    for command in ("ab --max-new 2", "chat --max-new 1"):
        line = f"{shlex.quote(sys.executable)} -m llama3_scratch {command} {closed}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, input="hi\n")
        assert done.returncode == 0 and "Traceback" not in done.stderr, line
        assert closed != "2>&-" or done.stdout


def test_json_has_what_is_printed_otherwise(capsys):
    """As one object: what it takes from the model is computed again here."""
    assert main(["--json", "--dtype", "float32"]) == 0
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert shown.err == "" and len(shown.out.splitlines()) == 1
    weights, config, tokenizer = load("tiny", torch.float32)
    ids = tokenizer.encode(PROMPT)
    assert (said["prompt"], said["ids"], said["text"]) == (PROMPT, ids, "42")
    assert said["new_ids"] == tokenizer.encode("42", bos=False)
    assert said["stopped_by"] == "<|end_of_text|>"
    with torch.inference_mode():
        top = forward(weights, torch.tensor(ids), config)[-1].softmax(-1).topk(5)
    assert [entry["id"] for entry in said["next"]] == top.indices.tolist()
    found = [entry["probability"] for entry in said["next"]]
    assert found == pytest.approx(top.values.tolist(), rel=1e-5)
    assert said["next"][0]["token"] == "42"
    for span, n in (("prompt", 17), ("then", 1)):
        speed = said["speed"][span]
        assert speed["tokens"] == n and speed["seconds"] > 0
        assert speed["tokens_per_second"] == pytest.approx(n / speed["seconds"])


@pytest.mark.thorough
def test_json_of_a_cut_answer_a_long_prompt_none_and_a_mistake(capsys):
    assert main(["--json", "Ben likes tea.", "--max-new", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["stopped_by"] == "max_new" and len(said["new_ids"]) == 3
    assert main(["--json", "Ben likes tea. " * 400, "--max-new", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["ids"]) > 1024 and len(said["next"]) == 5 and list(said["speed"]) == ["prompt"]
    assert main(["--json", "--max-new", "0"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["next"], said["new_ids"], said["speed"], said["text"]) == ([], [], {}, "")
    assert main(["--json", "--checkpoint", "nowhere"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: 'nowhere'")


def test_verify_gives_one_json_object_per_check(capsys):
    code = main(["verify", "tiny"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] != " "]
    assert main(["verify", "tiny", "--json"]) == code == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["verdict"] for entry in said] == [line.split()[0] for line in lines]
    assert all(entry.keys() == {"verdict", "check", "text"} for entry in said)


def test_verify_against_transformers_adds_its_checks(monkeypatch, capsys):
    from llama3_scratch.checkpoint import against, verify

    monkeypatch.setattr(verify, "checks", lambda directory: [("ok", "files", directory)])
    compared = [("ok", "logits", "equal"), ("FAULT", "next tokens", "other")]
    monkeypatch.setitem(against.AGAINST, "transformers", lambda _: compared)
    assert main(["verify", "tiny"]) == 0 and "logits" not in capsys.readouterr().out
    assert main(["verify", "tiny", "--against", "transformers"]) == 2
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown] == [
        ["ok", "files"], ["ok", "logits"], ["FAULT", "next"]]  # fmt: skip


def test_export_writes_what_the_program_reads(tmp_path, capsys):
    for to, name, kind in (("huggingface", "hf", "float32"), ("gguf", "a.gguf", "F32"),
                           ("meta", "meta", "BF16")):  # fmt: skip
        out = str(tmp_path / name)
        assert main(["export", "tiny", "--to", to, out, "--type", kind]) == 0
        assert capsys.readouterr().out == f"{out} is written.\n"
        assert main(["--checkpoint", out, "--dtype", "float32"]) == 0
        assert capsys.readouterr().out.endswith(f"\n{PROMPT}42\n")
        assert main(["export", "tiny", "--to", to, out]) == 2
        assert "exists" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_strangers_module_in_the_current_folder_is_not_run(tmp_path):
    """Neither by `-m`, nor by `-P -m`. The control: python's own `-c` imports it."""
    for name in ("tiktoken", "torch", "regex", "jinja2", "json"):
        (tmp_path / f"{name}.py").write_text("print('A STRANGER')\nraise SystemExit(3)\n")
    for flags in ([], ["-P"]):
        command = [sys.executable, *flags, "-m", "llama3_scratch", "verify", "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "STRANGER" not in done.stdout + done.stderr
        assert "FAULT" in done.stdout
    command = [sys.executable, "-c", "import tiktoken"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3 and "STRANGER" in done.stdout


def test_the_package_can_be_run_from_a_checkout_without_being_installed():
    """`-S` leaves out what is installed; the dependencies come by PYTHONPATH."""
    packages = os.pathsep.join(path for path in sys.path if path.endswith("-packages"))
    for module in ("llama3_scratch", "llama3_scratch.exercises.workbook"):
        done = subprocess.run(
            [sys.executable, "-S", "-m", module, "--help"], cwd=ROOT, capture_output=True,
            text=True, env=os.environ | {"PYTHONPATH": packages}, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_control_characters_of_a_prompt_a_token_and_a_name_are_shown(tmp_path, capsys):
    """A model that always says the same token, whatever comes in."""
    escape = "\x1b]52;c;cm0=\x07\x1b[2J"
    tokenizer = Tokenizer({**BYTES.ranks, escape.encode(): 256})
    config = replace(SMALL, vocab_size=tokenizer.vocab_size)
    weights = make_weights(config)
    for name in weights:
        if name.endswith(("wo.weight", "w2.weight")):
            weights[name].zero_()
    weights["tok_embeddings.weight"][:] = 1
    weights["norm.weight"][:] = 1
    weights["output.weight"].zero_()[256] = 1
    save(tmp_path / "a", weights, config, tokenizer)
    assert main(["--checkpoint", str(tmp_path / "a"), "a\x1b[2Jb", "--max-new", "2"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and shown.count("\\x1b]52") >= 3 and "a\\x1b[2Jb" in shown
    assert main(["--json", "--checkpoint", str(tmp_path / "a"), "ab", "--max-new", "2"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and json.loads(shown)["text"] == escape * 2
    assert main(["--checkpoint", str(tmp_path / "\x1b[2J")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_context_and_an_answer_beyond_any_memory_give_one_message(tmp_path, capsys):
    save(tmp_path, make_weights(SMALL), SMALL, BYTES)
    params = json.loads((tmp_path / "params.json").read_text()) | {"trained_length": 2**62}
    (tmp_path / "params.json").write_text(json.dumps(params))
    for n in (2**40, 2**61):
        assert main(["--checkpoint", str(tmp_path), "ab", "--max-new", str(n)]) == 2
        assert "Traceback" not in (said := capsys.readouterr().err) and said.startswith("error: ")
