"""What is faster than the core, for its two seams: `attend_fused`, and weights that are `quick`."""

from llama3_scratch.speed.attention import attend_fused
from llama3_scratch.speed.products import quick

__all__ = ["attend_fused", "quick"]
