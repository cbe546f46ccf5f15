"""Number formats: of single numbers (`SCALAR`), and of blocks that share a scale (`BLOCK`)."""

from llama3_scratch.formats.block import BLOCK
from llama3_scratch.formats.scalar import SCALAR

__all__ = ["BLOCK", "SCALAR"]
