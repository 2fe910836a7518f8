"""The settings of trl's SFTConfig that change the tokenizer: done before rows are rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gradsift.data.tokenization import Instance
from gradsift.errors import GradsiftError
from gradsift.training.settings.known import TOKENIZER_SETTINGS, require_plain_files
from gradsift.wording import few, first_line, one_line

TEMPLATE_FILES = (".jinja", ".j2")
N_SHOWN = 5


def set_up_tokenizer(tokenizer: PreTrainedTokenizerBase, sft: Mapping[str, object]) -> None:
    """Do to a tokenizer what trl does for `eos_token`, `chat_template_path` and `pad_token`.

    Another tokenizer's template brings its end-of-sequence token, as trl's `clone_chat_template`
    has it. Tokens that the model does not have are refused: trl would give them new, untrained rows
    of the embedding.
    """
    require_plain_files(sft)
    for key in TOKENIZER_SETTINGS:
        value = sft.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise GradsiftError(f"sft setting {key} is {value!r}, expected text.")
    for key in ("eos_token", "pad_token"):
        if sft.get(key) is not None:
            _require_token(tokenizer, key, sft[key])
            setattr(tokenizer, key, sft[key])
    path = sft.get("chat_template_path")
    if path is not None:
        _take_template(tokenizer, Path(path))


def require_eos_in_rows(
    tokenizer: PreTrainedTokenizerBase, sft: Mapping[str, object], instances: Sequence[Instance]
) -> None:
    """Refuse an `eos_token` that no response has: a chat template writes the end of a turn itself.

    trl would tell the model to stop at a token that it never learns to write.
    """
    token = sft.get("eos_token")
    if token is None or any(tokenizer.eos_token_id in item.labels for item in instances):
        return
    raise GradsiftError(
        f"sft setting eos_token is {token!r}, which is in no response of the {len(instances)} "
        "rows: the chat template ends a turn otherwise. Take it out, or give a template that "
        "writes it (sft.chat_template_path)."
    )


def changes_eos(sft: Mapping[str, object]) -> bool:
    """Return whether settings may change the end-of-sequence token."""
    return any(sft.get(key) is not None for key in ("eos_token", "chat_template_path"))


def _require_token(tokenizer: PreTrainedTokenizerBase, key: str, token: str) -> None:
    if token not in tokenizer.get_vocab():
        raise GradsiftError(
            f"sft setting {key} is {token!r}, which is no token of the model's tokenizer "
            f"(its own is {getattr(tokenizer, key)!r})."
        )


def _take_template(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    where = f"sft setting chat_template_path: {path}"
    if path.suffix in TEMPLATE_FILES:
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GradsiftError(f"{where} cannot be read ({one_line(error)}).") from error
        return
    if path.is_file():
        raise GradsiftError(
            f"{where} is a file, expected one that ends in .jinja or .j2, or a model's folder or "
            "hub id."
        )
    try:
        other = AutoTokenizer.from_pretrained(str(path))
        template = other.get_chat_template()
    except (OSError, KeyError, ImportError, ValueError) as error:
        raise GradsiftError(f"{where}: no chat template is there: {first_line(error)}") from error
    vocabulary = tokenizer.get_vocab()
    tokens = [token.content for token in other.added_tokens_decoder.values()]
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        shown = few(missing, N_SHOWN)
        raise GradsiftError(
            f"{where} has {len(missing)} tokens that the model does not have ({shown}): trl would "
            "add them, with rows of the embedding that nobody trained. Add them to the model's "
            "folder yourself, or give a .jinja file."
        )
    tokenizer.chat_template = template
    if other.eos_token is not None:
        _require_token(tokenizer, "eos_token", other.eos_token)
        tokenizer.eos_token = other.eos_token
