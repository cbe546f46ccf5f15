"""What the tests share: sizes, weights, Meta's reference, and how outputs of cells are compared.

nbval runs the notebooks in three lanes (`make test`). Their stored outputs are the tiny model's.
Under `LLAMA3_CHECKPOINT=random` the cells tagged `nbval-check-output` must print the same
(`--nbval-lax`). On any other checkpoint nothing is compared: no cell may fail.
"""

import os
import re

# One thread to a worker, in subprocesses and kernels too: more of them only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from llama3_scratch import Config, checkpoint
from llama3_scratch.config import RopeScaling


@pytest.fixture(scope="session", autouse=True)
def the_tests_are_about_tiny():
    """Whatever checkpoint the reader has named. (nbval's cells have no fixtures.)"""
    os.environ.pop("LLAMA3_CHECKPOINT", None)


# No two sizes are equal, so that a transposed view cannot pass: D 60, L 4, N 6, K 2, G 3, H 10,
# P 5, F 77, V 101.
ODD = Config(60, 4, 6, 2, 101, 7, 1e-5, 500000.0, 0.48)

CONFIGS = {
    "odd sizes": ODD,
    "Llama's ratios": Config(192, 3, 8, 2, 512, 32, 1e-5, 500000.0, 1.3),
    "three to a group, no multiplier": Config(90, 3, 9, 3, 103, 13, 1e-5, 500000.0),
    "multi-query": Config(96, 2, 6, 1, 107, 32, 1e-6, 10000.0, 1.3),
    "multi-head": Config(84, 3, 6, 6, 109, 11, 1e-5, 500000.0, 1.1),
    "scaled RoPE": Config(144, 2, 6, 2, 113, 32, 1e-5, 500000.0, 1.3, RopeScaling(8.0)),
}


def make_weights(config, dtype=torch.float32, seed=0):
    """Random weights whose norms are not all ones, so that a forgotten one shows."""
    weights = checkpoint.random_weights(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            weights[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def make_tokens(config, *shape, seed=0):
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def metas_transformer():
    """-> a function (config, weights) -> Meta's own `Transformer` with these weights."""
    import torch.distributed as dist
    from fairscale.nn.model_parallel.initialize import initialize_model_parallel
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        initialize_model_parallel(1)

    def build(config, weights, max_batch_size=3, max_seq_len=256):
        params = config.to_params()
        params.pop("rope_scaling", None)  # Meta's code has the factor 8 built in
        dtype = weights["norm.weight"].dtype
        torch.set_default_dtype(dtype)
        try:
            reference = Transformer(
                ModelArgs(max_batch_size=max_batch_size, max_seq_len=max_seq_len, **params)
            )
            reference.load_state_dict(weights, strict=True)
        finally:
            torch.set_default_dtype(torch.float32)

        def run(tokens, start=0):
            torch.set_default_dtype(dtype)
            try:
                return reference(tokens, start).clone()
            finally:
                torch.set_default_dtype(torch.float32)

        return run

    return build


class Tolerant(str):
    """Text that equals another when only the decimals differ, each by at most 2e-3.

    Other CPUs round differently in the last bits of float32; everything else must be the same.
    """

    number = re.compile(r"-?\d+\.\d+")

    def __eq__(self, other):
        if os.environ.get("LLAMA3_CHECKPOINT", "tiny") not in ("tiny", "random"):
            return True
        if self.number.sub("#", self) != self.number.sub("#", other):
            return False
        pairs = zip(self.number.findall(self), self.number.findall(other), strict=True)
        return all(abs(float(a) - float(b)) <= 2e-3 + 1e-9 for a, b in pairs)

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


def pytest_configure(config):
    """Let nbval compare outputs with `Tolerant`."""
    try:
        from nbval.plugin import IPyNbCell
    except ImportError:
        return
    sanitize = IPyNbCell.sanitize
    if not getattr(sanitize, "tolerant", False):

        def tolerant(self, text):
            return Tolerant(sanitize(self, text))

        tolerant.tolerant = True
        IPyNbCell.sanitize = tolerant
