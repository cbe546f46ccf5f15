"""What the tests share: Meta's reference, and how the outputs of cells are compared.

nbval runs the notebooks in three lanes. Their stored outputs are the tiny model's (`make test`).
Two lanes are left to CI (`make test-thorough`). Under `LLAMA3_CHECKPOINT=random` the cells tagged
`nbval-check-output` must print the same (`--nbval-lax`). On a model of other sizes nothing is
compared, but no cell may fail.
"""

import os
import re
from decimal import Decimal

# One thread per worker, also in subprocesses and kernels: more only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def the_tests_are_about_tiny():
    """Ignore the checkpoint that the reader has named. (nbval's cells have no fixtures.)"""
    os.environ.pop("LLAMA3_CHECKPOINT", None)


@pytest.fixture(scope="session")
def metas_transformer():
    """Return a function (config, weights) -> Meta's own `Transformer` with these weights."""
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
    """Text that equals another when only decimals differ, each by one unit of its last place.

    Other CPUs round differently in the last bits of float32; everything else must be the same.
    """

    number = re.compile(r"-?\d+\.\d+")

    def __eq__(self, other):
        if os.environ.get("LLAMA3_CHECKPOINT", "tiny") not in ("tiny", "random"):
            return True
        if self.number.sub("#", self) != self.number.sub("#", other):
            return False
        pairs = zip(self.number.findall(self), self.number.findall(other), strict=True)
        return all(abs(Decimal(a) - Decimal(b)) <= Decimal(1).scaleb(a.index(".") + 1 - len(a))
                   for a, b in pairs)  # fmt: skip

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
