"""How ranks start and end: results, errors with one message, and nobody is left hanging."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types

import psutil
import pytest
import ranks
import torch
import torch.distributed as dist
from helpers import BYTES, PTH, make_weights, write_shards

from llama3_scratch import PROMPT, InputError, processes, save
from llama3_scratch.__main__ import main
from llama3_scratch.processes import run_on

SOON = 15  # seconds, of which most go into the start of the processes


def thorough(*values):
    return pytest.param(*values, marks=pytest.mark.thorough)


def summed(x):
    total = x + dist.get_rank()
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), total, torch.rand(1).item()


def test_a_function_runs_on_each_rank_and_all_results_come_back():
    found = run_on(3, summed, torch.arange(4.0))
    assert [(rank, p) for rank, p, *_ in found] == [(0, 3), (1, 3), (2, 3)]
    assert all(torch.equal(total, 3 * torch.arange(4.0) + 3) for _, _, total, _ in found)
    assert len({drawn for *_, drawn in found}) == 1  # all begin with the same seed


def test_processes_are_kept_and_begin_anew():
    (first,), (again, other) = run_on(1, os.getpid), run_on(2, os.getpid)
    assert first == again != other
    assert run_on(1, summed, torch.ones(1)) == run_on(1, summed, torch.ones(1))


def test_a_notebooks_functions_are_sent_with_what_they_name():
    """Their module is __main__, which a rank does not have; here, functions of no file."""
    notebook = types.ModuleType("__main__")
    exec(  # two cells of a notebook
        "import math, torch, types\n"
        "import torch.distributed as dist, torch.distributed.config\n"
        "scale, table = 3, {'a': 1}\n"
        "def factorial(n):\n    return n * factorial(n - 1) if n else 1\n"
        "def outer(x, *, plus=2):\n"
        "    inner = lambda y: y * scale + x + math.floor(2.5)\n"
        "    its = types.SimpleNamespace(config=torch.tensor(0), distributed=0).config\n"
        "    return inner(dist.get_rank()) + plus + table['a'] + factorial(4) + int(its)\n",
        vars(notebook),
    )
    assert run_on(2, notebook.outer, 10) == [10 + 2 + 2 + 1 + 24, 13 + 2 + 2 + 1 + 24]
    step = 5
    assert run_on(2, lambda x: x + step, 1) == [6, 6]


def fails(kind):
    if dist.get_rank() == 1:
        raise kind("of this kind")
    dist.barrier()


def is_killed():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


@pytest.mark.parametrize(("function", "args", "kind", "says"), [
    (fails, (InputError,), InputError, "rank 1: of this kind"),
    (is_killed, (), RuntimeError, "rank 1 has ended (SIGKILL)."),
    thorough(fails, (ValueError,), RuntimeError, "rank 1: ValueError: of this kind"),
    thorough(fails, (SystemExit,), RuntimeError, "rank 1: SystemExit: of this kind"),
    thorough(os._exit, (7,), RuntimeError, "rank 0 has ended (exit code 7)."),
])  # fmt: skip
def test_the_first_error_ends_all_ranks(function, args, kind, says):
    pids = run_on(2, os.getpid)
    began = time.monotonic()
    with pytest.raises(kind) as error:
        run_on(2, function, *args)
    assert str(error.value) == says and type(error.value) is kind
    assert time.monotonic() - began < SOON
    assert not any(map(alive, pids))


@pytest.mark.thorough
def test_a_rank_that_was_killed_between_calls_is_replaced():
    os.kill(run_on(2, os.getpid)[1], signal.SIGKILL)
    time.sleep(0.2)
    assert len(run_on(2, os.getpid)) == 2


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.thorough
def test_workers_end_with_the_program():
    code = (
        "import os; from llama3_scratch.processes import run_on\n"
        "print(*run_on(2, os.getpid), flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    deadline = time.monotonic() + SOON
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(map(alive, pids))


# The command line


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(p, *arguments, own=None, code=None, **variables):
    """Start p ranks with the variables that torchrun sets. own: {rank: its arguments}."""
    port, started = free_port(), []
    for rank in range(p):
        place = {"RANK": rank, "WORLD_SIZE": p, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": p,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | variables  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in place.items()}
        program = ["-c", code] if code else ["-m", "llama3_scratch"]
        started.append(subprocess.Popen(
            [sys.executable, *program, *(own or {}).get(rank, arguments)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
    return started


def ended(started, stdin=""):
    """-> the exit codes, what all wrote on standard output, and on standard error."""
    shown = [each.communicate(stdin, timeout=60) for each in started]
    return [each.returncode for each in started], *map("".join, zip(*shown, strict=True))


def refused(started, says, stdin=""):
    """Check that all ranks end with code 2 and that one of them says why."""
    codes, _, errors = ended(started, stdin)
    assert codes == [2] * len(started)
    assert errors.count("error:") == 1 and "Traceback" not in errors, errors
    assert says in errors
    return errors


ARGUMENTS = ["--checkpoint", "tiny", "--dtype", "float32", "--exact", "--max-new", "8"]


@pytest.mark.parametrize("extra", [thorough([]), ["--pipeline"]], ids=["slices", "pipeline"])
def test_the_ranks_print_what_one_process_prints(capsys, extra):
    sampled = [*ARGUMENTS, "Ben likes tea.", "--temperature", "1", "--seed", "3", "--json"]
    assert main(sampled) == 0
    alone = json.loads(capsys.readouterr().out)
    codes, shown, _ = ended(start(2, *sampled, *extra))
    found = json.loads(shown)  # one object: only rank 0 prints
    assert codes == [0, 0]
    assert {**found, "speed": 0, "next": 0} == {**alone, "speed": 0, "next": 0}


def test_torchrun_starts_the_program(capsys):
    assert main(["--checkpoint", "tiny"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, "-m", "llama3_scratch", "--checkpoint", "tiny"],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith(f"\n{PROMPT}42\n")
    assert "keys, by head      [T, K, H]   here [17, 1, 24]" in done.stdout
    assert "on this one of 2 ranks" in done.stdout and done.stdout.count("17 tokens") == 1
    assert done.stderr.count("per second") == 1 + done.stderr.count("; then")


@pytest.mark.thorough
def test_without_a_seed_the_ranks_agree_on_one():
    arguments = [*ARGUMENTS, "--temperature", "2", "--max-new", "30", "--json"]
    codes, shown, _ = ended(start(2, *arguments))
    assert codes == [0, 0] and len(json.loads(shown)["new_ids"]) > 0


def test_a_conversation_goes_through_rank_0():
    codes, shown, errors = ended(start(2, "chat", *ARGUMENTS), "hello\n\nwho\\\nare you?\n")
    assert codes == [0, 0] and len(shown.splitlines()) >= 2
    assert errors.count("per second") == 4 and "prefix caching" in errors


def test_ranks_that_do_not_divide_the_heads_are_refused():
    refused(start(3, *ARGUMENTS), "n_kv_heads is 2: expected a multiple of the 3 ranks")


def test_a_missing_file_is_refused(tmp_path):
    save(tmp_path / "model", make_weights(ranks.EIGHT), ranks.EIGHT, BYTES)
    write_shards(tmp_path / "model", make_weights(ranks.EIGHT), 4)
    (tmp_path / "model" / PTH.replace("00", "01")).unlink()
    refused(start(2, "--checkpoint", str(tmp_path / "model")), "none left out), found")


def test_an_error_on_one_rank_ends_all_with_its_message():
    began = time.monotonic()
    refused(start(2, own={0: ARGUMENTS, 1: ["--checkpoint", "elsewhere"]}), "'elsewhere' is not")
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("killed", [thorough(0), 1])
def test_a_rank_that_is_killed_ends_the_others(killed):
    started = start(2, "chat", *ARGUMENTS)
    started[0].stdin.write("hello\n")
    started[0].stdin.flush()
    assert started[0].stdout.readline()  # the answer: all are at work, or wait for a question
    started[killed].kill()
    began = time.monotonic()
    codes, _, errors = ended(started, "again\n")
    assert codes[killed] == -signal.SIGKILL and codes[1 - killed] == 2
    assert errors.count("error:") == 1 and "another rank has ended" in errors
    assert time.monotonic() - began < SOON


@pytest.mark.thorough
def test_a_killed_rank_ends_torchrun():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    code = "import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
    code += "import llama3_scratch.__main__ as program, sys\nsys.exit(program.main())"
    script = [sys.executable, "-c", code, *ARGUMENTS]
    done = subprocess.run([*torchrun, "--no-python", *script], capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode and "SIGKILL" in done.stderr and done.stderr.count("error: ") <= 1


QUICKLY = (
    "import sys, datetime; from llama3_scratch import __main__, processes\n"
    "processes.RENDEZVOUS = datetime.timedelta(seconds=2); sys.exit(__main__.main())"
)


@pytest.mark.parametrize(("variables", "says"), [
    ({"WORLD_SIZE": 3}, "the 3 ranks do not find each other"),
    thorough({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': expected 1 or more"),
    thorough({"WORLD_SIZE": 1, "RANK": 1}, "RANK is 1: expected less than 1 ranks"),
    thorough({"MASTER_PORT": "none"}, "the 1 ranks do not find each other"),
])  # fmt: skip
def test_wrong_variables_are_refused(variables, says):
    errors = start(1, *ARGUMENTS, code=QUICKLY, **variables)
    codes, _, said = ended(errors)
    assert codes == [2] and said.count("error:") == 1 and says in said, said


def test_other_commands_run_in_one_process():
    refused(start(1, "verify", "tiny"), "verify is not for several ranks")


def test_pipeline_is_for_several_ranks(capsys):
    assert main([*ARGUMENTS, "--pipeline"]) == 2
    assert "--pipeline is for several ranks" in capsys.readouterr().err


def test_without_torchruns_variables_there_is_no_group():
    assert not processes.started() and processes.place() == (0, 1)
