"""Fewer bits: methods that round weights, models of such weights, a cache of fewer bits."""

from llama3_scratch.quantize.cache import QuantizedCache
from llama3_scratch.quantize.model import collect, llm_int8, sequential, smooth
from llama3_scratch.quantize.packed import Int4, Int8, Packed, packed
from llama3_scratch.quantize.rounding import (
    Rounded,
    adaround,
    awq,
    dequantize,
    gptq,
    hessian,
    quip,
    rtn,
)

__all__ = [
    "Int4",
    "Int8",
    "Packed",
    "QuantizedCache",
    "Rounded",
    "adaround",
    "awq",
    "collect",
    "dequantize",
    "gptq",
    "hessian",
    "llm_int8",
    "packed",
    "quip",
    "rtn",
    "sequential",
    "smooth",
]
