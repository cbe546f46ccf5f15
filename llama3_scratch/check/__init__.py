"""The exercises' checkers, one module to a notebook: `check.layer_norm(my_layer_norm)`.

A checker runs the reader's function and ours on the same seeded inputs and prints what it found.
Where the two differ it compares with the mistakes that people make, and names the one that fits.
"""

from llama3_scratch.check.attention import (
    causal_mask,
    one_head,
    previous_token_head,
    softmax,
)
from llama3_scratch.check.files import (
    join_shards,
    n_bytes,
    tensor_place,
    token_bytes,
    unpermute,
)
from llama3_scratch.check.generation import (
    beam_search,
    min_p,
    penalise,
    stop_string,
    window_mask,
)
from llama3_scratch.check.grouped import (
    add_change,
    cache_room,
    merge_heads,
    pool_heads,
    readers,
)
from llama3_scratch.check.loop import (
    crossing,
    n_layers,
    post_norm_block,
    same_logits,
    settled,
)
from llama3_scratch.check.norm import (
    fold,
    gemma_norm,
    layer_norm,
    n_parameters,
    read_row,
)
from llama3_scratch.check.rope import (
    frequencies,
    half_split,
    relative_product,
    rope_scaling,
    rotate,
)
from llama3_scratch.check.swiglu import (
    break_even,
    ffn_dim,
    multiplier,
    one_neuron,
    second_half,
)
from llama3_scratch.check.tokens import (
    chat,
    count_ways,
    group_digits,
    longest_match,
    stream,
)
