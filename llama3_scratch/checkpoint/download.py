"""Download a repository from Hugging Face, with the package huggingface_hub."""

from pathlib import Path

from llama3_scratch.errors import InputError, first_line

WANTED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
          "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
          "model.safetensors", "model-*.safetensors", "model.safetensors.index.json")  # fmt: skip


def download(repository):
    """A repository's id, `owner/name` -> the folder of its files, downloaded unless they are there.

    Interrupted downloads resume. Raises `InputError`, which says what to do; for a gated model,
    which page to visit and where to put the token.
    """
    from huggingface_hub import errors, snapshot_download  # only a download needs it

    page = f"https://huggingface.co/{repository}"
    try:
        return Path(snapshot_download(repository, allow_patterns=WANTED))
    except errors.GatedRepoError:
        raise InputError(
            f"{repository} is gated: ask for access on {page}, create a token on "
            "https://huggingface.co/settings/tokens and put it into the environment variable "
            "HF_TOKEN (or run: hf auth login)."
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"there is no folder {repository!r} here and no repository {page}, or it is private: "
            "check the spelling, or put a token that may read it into HF_TOKEN."
        ) from None
    except Exception as error:  # the network's errors are those of several other packages
        raise InputError(
            f"there is no folder {repository!r} here, and {page} could not be downloaded "
            f"({first_line(error)}). Run it again when there is a network and room on the disk: "
            "interrupted downloads resume."
        ) from None
