"""Compare a model's answers with published ones, and with those of Hugging Face's code."""

import torch

from llama3_scratch import PROMPT, STORY
from llama3_scratch.checkpoint import huggingface
from llama3_scratch.checkpoint.export import config_json
from llama3_scratch.checkpoint.memory import spare_ram
from llama3_scratch.checkpoint.packed import unpacked
from llama3_scratch.checkpoint.source import kind_of, opened
from llama3_scratch.checkpoint.verify import identified, known_facts, released
from llama3_scratch.config import PRESETS
from llama3_scratch.errors import InputError, first_line, visible
from llama3_scratch.model import forward

TEXTS = (
    PROMPT, STORY,
    "The capital of France is",
    "Once upon a time there was a miller who had three sons,",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "1, 2, 4, 8, 16, 32,",
    "Die Katze sitzt auf dem Dach und",
    "El agua hierve a cien grados, pero en la montaña",
    "北京是中国的",
    "Q: Which planet is the largest one?\nA:",
)  # fmt: skip
# The largest difference of logits, by the type, in units of transformers' largest logit; it
# rounds rotations and norms elsewhere. Measured: tiny 1e-6, 1e-2 and 1e-3; 32 layers of random
# numbers 2e-6, 4e-2 and 4e-3; rows in the wrong order 0.5 and more.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-1, torch.float16: 1e-2}
BELOW = 0.5  # logits: a published text is of bfloat16, in which near ties fall one way or the other
WITHIN = 1e-4  # of published probabilities, of float32; ten times as many bits of the entropy


def against_published(directory):
    """What `load` takes -> a generator of (verdict, what, text): published answers of that model.

    The model is recognised by the hashes of its files. Where they are not known, each published
    model with these settings is tried, and another answer is "skipped", not a "FAULT". All prompts
    pass the model together, once, in float32. A published text is given to the model whole: each
    of its tokens has to be the likeliest, or at most `BELOW` logits below. Raises `InputError`.
    """
    place, stored = opened(directory)
    config = stored.config
    owners = [owner["name"] for owner in identified(place, config).values() if owner]
    names = owners[:1] or [model["name"] for model in released(config)
                           if PRESETS[model["preset"]] == config]  # fmt: skip
    answers = [answer for answer in known_facts()["answer"] if {*names} & {*answer["models"]}]
    if not answers:
        yield (
            "skipped",
            "published",
            "no answers are published of a model with these sizes and settings",
        )
        return
    prompts, texts = [], []
    for answer in answers:
        prompts.append(stored.tokenizer.encode(answer["prompt"], bos=answer.get("bos", True)))
        said = stored.tokenizer.encode(answer.get("says", ""), bos=False)
        texts.append(answer.get("greedy", said))
    weights = stored.weights.to(torch.float32, None)
    logits = _logits(weights, [[*a, *b[:-1]] for a, b in zip(prompts, texts, strict=True)], config)
    for answer, prompt, text, rows in zip(answers, prompts, texts, logits, strict=True):
        of = next(name for name in names if name in answer["models"])
        fault, says = _compare(answer, text, rows[len(prompt) - 1 :], stored.tokenizer)
        verdict = "ok" if not fault else "FAULT" if owners else "skipped"
        after = f"after {answer['prompt'][-40:]!r}"
        says = f"{says}, published of {of} ({answer['source']})"
        if verdict == "skipped":
            says += ". The files' hashes are not known: is it a fine-tune or another revision?"
        yield verdict, "published", visible(f"{after} {says}")


def _compare(answer, text, logits, tokenizer):
    """An entry of known.toml, its ids, logits [n, V] -> (whether they differ, what was found)."""
    if "next" in answer:
        log_p = logits[0].log_softmax(-1)
        entropy = float(-(log_p.exp() * log_p).sum() / torch.tensor(2.0).log())
        ids = [tokenizer.encode(token, bos=False)[0] for token in answer["next"]]
        off = max(abs(float(log_p[i].exp()) - p)
                  for i, p in zip(ids, answer["next"].values(), strict=True))  # fmt: skip
        within = answer.get("within", WITHIN)
        fault = off > within or abs(entropy - answer["entropy"]) > within * 10
        return fault, (
            f"probabilities differ by at most {off:.6f}, entropy {entropy:.4f} bits "
            f"(expected {answer['entropy']:.4f})"
        )
    ids = torch.tensor(text)
    best = logits[: len(text)].amax(-1)
    below = best - logits[: len(text)].gather(-1, ids[:, None])[:, 0]
    says = f"{int((below == 0).sum())} of {len(text)} tokens are the likeliest"
    if below.any():
        i = int(below.argmax())
        says += f", {tokenizer.decode([text[i]])!r} is {float(below[i]):.2f} logits below"
    return bool((below > BELOW).any()), says


def against_transformers(directory):
    """What `load` takes -> a generator of (verdict, what, text): ten texts, one line each.

    Of each: the largest difference of all logits, in units of transformers' largest one, and the
    next token. transformers reads Hugging Face's folders itself, and with them computes the ids,
    too; for other files it gets our tensors, under its names and in its order of rows. The type is
    float32 if that fits into memory (4 bytes per parameter), else the stored one, in which
    transformers maps its file, too. Raises `InputError` if it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(
            "this comparison needs the package transformers: pip install transformers"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    place, stored = opened(directory)
    stored = stored._replace(weights=unpacked(stored.weights))
    config, kept = stored.config, stored.weights["norm.weight"].dtype
    dtype = torch.float32 if 4 * config.n_parameters < 0.8 * spare_ram() else kept
    rows = [stored.tokenizer.encode(text)[: config.context_length] for text in TEXTS]
    try:
        if kind_of(place) is huggingface:
            yield from _same_ids(transformers, place, rows)
        theirs = _their_logits(transformers, place, stored, dtype, rows)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"transformers cannot read {place} ({first_line(error)}).") from None
    ours = _logits(stored.weights.to(dtype, None), rows, config)
    for text, row, right, found in zip(TEXTS, rows, theirs, ours, strict=True):
        scale = float(right.abs().max())
        worst = float((found - right).abs().max()) / scale
        token, other = int(right[-1].argmax()), int(found[-1].argmax())
        tie = float(right[-1, token] - right[-1, other]) <= BOUND[dtype] * scale
        ok = worst <= BOUND[dtype] and tie  # not if a number is NaN
        said = f"next token {token}, {stored.tokenizer.decode([token])!r}, in both"
        if token != other:
            said = f"next token {other}, in transformers {token}{', a near tie' * tie}"
        text = (
            f"{len(row)} tokens, ending {text[-12:]!r}, in {str(dtype)[6:]}: logits differ by "
            f"{worst:.1e} of the largest (bound {BOUND[dtype]:.0e}); {said}"
        )
        yield "ok" if ok else "FAULT", "transformers", visible(text)


def _same_ids(transformers, place, rows):
    """Yield a line about the ids of `TEXTS`, by the tokenizer that transformers reads."""
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # some folders have only Meta's tokenizer.model
        yield "skipped", "transformers' ids", visible(f"none: {first_line(error)}")
        return
    differ = [text for text, row in zip(TEXTS, rows, strict=True)
              if theirs(text).input_ids[: len(row)] != row]  # fmt: skip
    says = f"differ for {differ[0]!r} (texts: {len(differ)})" if differ else "equal ours"
    yield "FAULT" if differ else "ok", "transformers' ids", f"{says}, of {len(rows)} texts"


def _their_logits(transformers, place, stored, dtype, rows):
    """Return the logits of transformers' model for each row of ids."""
    if kind_of(place) is huggingface:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, local_files_only=True, trust_remote_code=False,
            use_safetensors=True,
        )  # fmt: skip
    else:
        config, weights = stored.config, stored.weights.to(dtype, None)
        state = {}
        for name in weights:
            ordered = name.endswith(("attention.wq.weight", "attention.wk.weight"))
            tensor = weights[name]
            tensor = (huggingface.in_hugging_faces_order(tensor, config.head_dim)
                      if ordered else tensor)  # fmt: skip
            state[huggingface.hugging_faces_name(name)] = tensor
        settings = transformers.LlamaConfig(**config_json(config, dtype))
        model = transformers.LlamaForCausalLM.from_pretrained(
            None, config=settings, state_dict=state, dtype=dtype
        )
    with torch.inference_mode():
        logits = model(_padded(rows)).logits.float()
    return [one[: len(row)] for one, row in zip(logits, rows, strict=True)]


@torch.inference_mode()
def _logits(weights, rows, config):
    """Return the logits [T, V] of each row of ids; all rows go through the model together."""
    logits = forward(weights, _padded(rows), config)
    return [one[: len(row)] for one, row in zip(logits, rows, strict=True)]


def _padded(rows):
    """Rows of ids -> [B, T]. What stands behind a row's end does not change what is before it."""
    return torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, rows)), batch_first=True)


AGAINST = {"published": against_published, "transformers": against_transformers}
