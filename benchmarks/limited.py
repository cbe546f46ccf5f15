"""Run a command under a memory limit that counts the page cache, and report what it used.

    python benchmarks/limited.py --drop DIR 4 python -m llama3_scratch --checkpoint DIR --max-new 1

The first argument is the limit in GiB. It is set for a control group without swap, in which the
pages of a file that a process reads or maps count like its own memory: by `systemd-run` where that
works, otherwise by the kernel's own files, which needs root. For Linux.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SCOPE = ["systemd-run", "--quiet", "--scope", "-p", "MemorySwapMax=0"]
LIMIT = ("memory.max", "memory.limit_in_bytes")  # of the control groups' version 2, and 1
MOST = ("memory.peak", "memory.max_usage_in_bytes")


def drop(folder):
    """Take a folder's files out of the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous(pid):
    """Return the resident bytes that are not pages of a file; 0 once the process has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
    return 0


def peaks(process, group=None):
    """Wait for a process -> {"anonymous": largest seen every 20 ms, "most": its group's peak}."""
    seen = {"anonymous": 0}
    while process.poll() is None:
        seen["anonymous"] = max(seen["anonymous"], anonymous(process.pid))
        for name in MOST if group else ():
            with contextlib.suppress(OSError):  # the other version's file, or no group
                seen["most"] = int((group / name).read_text())
        time.sleep(0.02)
    return seen


@contextlib.contextmanager
def limited(n_bytes):
    """-> (what sets the limit, the words to put before a command, its group or None)."""
    scopes = [[*SCOPE, *user, "-p", f"MemoryMax={n_bytes}"] for user in ([], ["--user"])]
    for scope in scopes:
        with contextlib.suppress(OSError):
            if not subprocess.run([*scope, "true"], capture_output=True).returncode:
                yield " ".join(scope), scope, None
                return
    version_2 = (ROOT / "cgroup.controllers").exists()
    group = (ROOT if version_2 else ROOT / "memory") / f"llama3-{os.getpid()}"
    try:
        group.mkdir()
        (group / LIMIT[not version_2]).write_text(str(n_bytes))
        for swap, value in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", n_bytes)):
            with contextlib.suppress(OSError):  # the other version's file, or swap is not counted
                (group / swap).write_text(str(value))
        enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        yield f"{group}/{LIMIT[not version_2]}", enter, group
    except PermissionError as error:
        sys.exit(f"systemd-run does not work here, and {error.filename} may not be written: run "
                 "this as root.")  # fmt: skip
    finally:
        if group.exists():
            group.rmdir()


def group_of(pid):
    """Return the folder of the control group that counts a process's memory."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            return ROOT / kinds / path.lstrip("/")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drop", type=Path, metavar="DIR", help="take its files out of the page "
        "cache first: what others have read there is not counted for the command")  # fmt: skip
    parser.add_argument("gib", type=float, help="the limit, in GiB")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.drop:
        drop(args.drop)
    with limited(int(args.gib * 2**30)) as (means, enter, group):
        began = time.perf_counter()
        process = subprocess.Popen([*enter, *args.command])
        if group is None:
            time.sleep(0.5)  # systemd-run has become the command by then
            group = group_of(process.pid)
        seen = peaks(process, group)
        seconds = time.perf_counter() - began
    print(f"\nlimit     {args.gib:g} GiB, swap off, by {means}")
    print(f"took      {seconds:.1f} s, exit code {process.returncode}")
    print(f"most      {seen.get('most', 0):,} bytes at one time, pages of files counted")
    print(f"anonymous {seen['anonymous']:,} bytes at one time, without them")
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
