"""Compare the memory plan with the tensors themselves, and try it on made-up machines."""

import re
import weakref
from dataclasses import replace

import pytest
import torch
from helpers import CONFIGS, ODD, make_weights
from torch.utils._python_dispatch import TorchDispatchMode

from llama3_scratch import PRESETS, PROMPT, forward, load, weight_shapes
from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint import memory
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.model import attend

EIGHT = PRESETS["Llama-3-8B"]
GB = 10**9


class Live(TorchDispatchMode):
    """Count the bytes of all live tensors that were created under it, and their peak."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            key = storage and storage._cdata
            if storage is not None and key not in self.known and key not in self.live:
                self.live[key] = storage.nbytes()
                self.now += self.live[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, key)
        return made

    def gone(self, key):
        self.now -= self.live.pop(key)


def peak(config, dtype, T, S, attend=attend, stored=None):
    """Return the most bytes that `forward` holds at one time, from tensors without values."""
    weights = {name: torch.empty(shape, dtype=stored or dtype, device="meta")
               for name, shape in weight_shapes(config).items()}  # fmt: skip
    cache = None
    if S > T:
        cache = Cache(config, S, (), dtype, "meta")
        cache.length = S - T
    tokens = torch.empty(T, dtype=torch.long, device="meta")
    known = [*weights.values(), tokens, *([cache.keys, cache.values] if cache else [])]
    used = LazyWeights(weights, weights.__getitem__, dtype)
    with torch.no_grad(), Live(known) as live:
        forward(used if stored else weights, tokens, config, cache, attend)
    return live.peak


# --- What is needed -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_planned_weights_and_cache_equal_the_tensors(config):
    for dtype in (torch.float32, torch.bfloat16):
        plan = memory.plan(config, dtype, context=29)
        assert plan.weights == sum(t.nbytes for t in make_weights(config, dtype).values())
        cache = Cache(config, 29, (), dtype)
        assert plan.cache == cache.keys.nbytes + cache.values.nbytes


def test_the_8b_and_a_tied_model_have_their_known_sizes():
    plan = memory.plan(EIGHT, context=8192)
    assert (plan.weights, plan.cache) == (16_060_522_496, 2**30)  # 128 KiB for each position
    assert plan.copies == plan.reordered == 0
    norm = torch.ones(1, dtype=torch.bfloat16)
    theirs = LazyWeights(["norm.weight"], lambda name: norm, costly=["a query's rows"])
    theirs = memory.plan(EIGHT, torch.float32, weights=theirs)
    assert (theirs.copies, theirs.reordered) == (4 * 128256 * 4096, 2 * 32 * 5120 * 4096)
    assert memory.plan(EIGHT, torch.float32).weights == 32_121_044_992
    assert memory.plan(PRESETS["Llama-3.2-1B"]).weights == 2 * 1_235_814_400


CASES = [(1, 1), (17, 17), (1, 256), (17, 256), (200, 200), (1, 4000), (900, 2000)]
MODELS = CONFIGS | {name: replace(PRESETS[name], n_layers=2)  # all layers are alike
                    for name in ("Llama-3-8B", "Llama-3.2-1B")}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_planned_activations_fit_the_forward_pass(config, dtype):
    """The plan is never too small, and at most half too large."""
    for T, S in CASES:
        found = peak(config, dtype, T, S)
        said = memory.activations(config, dtype.itemsize, T, S)
        assert found <= said <= 1.5 * found, (T, S)


def test_a_forward_pass_that_holds_more_is_noticed():
    def hoarding(query, keys, values, mask):
        held = torch.cat([keys, values] * 9)  # noqa: F841
        return attend(query, keys, values, mask)

    said = memory.activations(ODD, 4, 17, 256)
    assert peak(ODD, torch.float32, 17, 256) <= said
    assert peak(ODD, torch.float32, 17, 256, attend=hoarding) > said


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_planned_copies_fit_a_pass_that_casts(config):
    stored = {"norm.weight": torch.ones(1, dtype=torch.bfloat16)}
    plan = memory.plan(config, torch.float32, weights=stored)
    found = peak(config, torch.float32, 17, 256, stored=torch.bfloat16)
    said = plan.copies + memory.activations(config, 4, 17, 256)
    assert found <= said <= 2 * found
    assert plan.activations == memory.activations(config, 4, 17, 256)


# --- What there is: RAM ---------------------------------------------------------------------------


def group(folder, version, limit, used, active, inactive):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names[version == 1], (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    total = "total_" if version == 1 else ""
    stat = f"{total}inactive_file {inactive}\n{total}active_file {active}\n"
    own = "inactive_file 0\nactive_file 0\n" if version == 1 else ""  # without its subgroups
    (folder / "memory.stat").write_text(f"anon 5\n{own}{stat}")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 10 GB to spare -> a function: a process's control groups -> spare RAM."""
    available = type("", (), {"available": 10 * GB})
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: available)

    def spare(lines):
        (tmp_path / "mine").write_text(lines)
        return memory.spare_ram(tmp_path, tmp_path / "mine")

    return spare


def test_ram_without_control_groups_is_all_that_is_available(machine, tmp_path):
    assert machine("") == machine("0::/\n") == machine("4:memory:/a/b\n1:cpu:/\n") == 10 * GB
    assert memory.spare_ram(tmp_path, tmp_path / "no such file") == 10 * GB
    assert 0 < memory.spare_ram() <= 10 * GB


@pytest.mark.parametrize(("top", "line"), [("", "0::"), ("memory", "9:cpu:/x\n4:memory:")])
def test_a_control_group_limits_ram(machine, tmp_path, top, line):
    """In both versions: its limit and its parents' limits, less what is used, except file pages."""
    version = 1 if top else 2
    no_limit = 9223372036854771712 if top else "max"
    group(tmp_path / top, version, no_limit, 30 * GB, 0, 0)
    group(tmp_path / top / "a", version, 6 * GB, 3 * GB, 0, 0)
    group(tmp_path / top / "a" / "b", version, 4 * GB, 3 * GB, GB // 2, GB // 4)
    group(tmp_path / top / "other", version, GB, GB, 0, 0)
    assert machine(f"{line}/a/b\n") == 1.75 * GB
    assert machine(f"{line}/a\n") == 3 * GB
    assert machine(f"{line}/\n") == 10 * GB
    group(tmp_path / top / "a", version, 6 * GB, 5 * GB, 0, GB // 8)
    assert machine(f"{line}/a/b\n") == 1.125 * GB, "the parent's limit is lower"
    group(tmp_path / top, version, 10 * GB, 11 * GB, 0, 0)  # as at a container's root
    assert machine(f"{line}/a/b\n") == 0


# --- What there is: a GPU, and the way ------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A made-up GPU: a function that sets (free, total, allocated, reserved) and the fraction."""

    def fake(free, total, allocated=0, reserved=0, fraction=1.0):
        cuda = {
            "mem_get_info": (free, total), "memory_allocated": allocated,
            "memory_reserved": reserved, "get_per_process_memory_fraction": fraction,
        }  # fmt: skip
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, lambda device, v=value: v, raising=False)
        return memory.plan(EIGHT, device="cuda:0", tokens=17, context=256)

    return fake


def test_a_large_gpu_holds_everything_and_a_small_one_a_layer_at_a_time(gpu):
    plan = gpu(23 * GB, 24 * GB)
    assert (plan.way, plan.gpu, plan.copies, plan.missing) == ("on the device", 23 * GB, 0, 0)
    assert "way    on the device: everything is copied" in str(plan)
    whole = gpu(80 * GB, 80 * GB)
    needed = whole.weights + whole.cache + whole.activations
    for short, way in ((0, "streamed"), (GB, "on the device")):
        assert gpu(int(needed / memory.GPU_SHARE) - 1 + short, 80 * GB).way == way
    small = gpu(6 * GB, 80 * GB)
    assert (small.way, small.missing) == ("streamed", 0)
    assert small.copies == 2 * 128256 * 4096, "a table is larger than a layer"
    assert "6.000 GB  memory of the device" in str(small) and "lacks" not in str(small)
    tiny = gpu(GB, 80 * GB)
    assert tiny.way == "streamed" and tiny.missing > 0.1 * GB and "lacks" in str(tiny)


def test_the_memory_fraction_of_a_process_is_a_limit(gpu):
    """`torch.cuda.set_per_process_memory_fraction` sets it; reserved, unused memory is spare."""
    part = gpu(79 * GB, 80 * GB, fraction=0.075)
    assert (part.way, part.gpu) == ("streamed", 6 * GB)
    assert gpu(79 * GB, 80 * GB, 2 * GB, 3 * GB, fraction=0.075).gpu == 4 * GB
    assert gpu(20 * GB, 80 * GB, 2 * GB, 50 * GB).gpu == 68 * GB
    assert gpu(0, 80 * GB, 7 * GB, 7 * GB, fraction=0.075).gpu == 0


@pytest.mark.parametrize("way", ["on the device", "streamed", "memory-mapped"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
@torch.inference_mode()
def test_every_way_gives_the_same_logits(way, dtype):
    """On the CPU in place of a GPU: the ways differ in when tensors are copied."""
    weights, config, tokenizer = load("tiny", dtype)
    tokens = torch.tensor(tokenizer.encode(PROMPT))
    expected = forward(weights, tokens, config)
    planned = replace(memory.plan(config), way=way)
    weights, _, _ = load("tiny", dtype, "cpu", planned)
    assert isinstance(weights, LazyWeights) == (way != "on the device")
    assert torch.equal(forward(weights, tokens, config), expected)


def test_the_plans_text_lists_needs_and_limits():
    def plan(ram, kept=0):
        return memory.Plan("memory-mapped", 16 * GB, GB // 2, kept, GB, GB // 4, ram, None)

    text = str(plan(24 * GB))
    assert re.findall(r"^needs +([\d.]+) GB", text, re.M) == ["16.000", "0.500", "1.000", "0.250"]
    assert re.findall(r"^has +([\d.]+) GB", text, re.M) == ["24.000"]
    assert "which then stays in memory" in text and "device" not in text and "lacks" not in text
    assert plan(4 * GB).missing == 0 and "read again for every token" in str(plan(4 * GB))
    apples = replace(plan(17 * GB), way="on the device")  # its memory is the RAM: weights count
    assert apples.missing == 0.75 * GB and replace(apples, ram=18 * GB).missing == 0
    assert plan(GB).missing == 0.75 * GB and "lacks      0.750 GB" in str(plan(GB))
    assert plan(GB, GB).missing == 1.75 * GB and "1.000 GB  query and key" in str(plan(GB, GB))
