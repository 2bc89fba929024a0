"""Text to token ids and back, through transformers, which is imported when text is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanoinfer.request import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class Tokenizer:
    """The tokenizer of a model folder; RequestError when the folder has none, or one that cannot be used.

    `vocab_size` is the model's: a text that becomes other ids is refused. No code of the folder is ever run, and
    nothing is fetched.
    """

    def __init__(self, folder: Path, *, vocab_size: int) -> None:
        if not any((folder / name).is_file() for name in _FILES):
            raise RequestError(f"{folder} holds no tokenizer; give token ids, or name one with tokenizer=...")
        self._folder, self._vocab_size = folder, vocab_size
        self._tokenizer: Any = _load(folder)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the model expects around a text."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        if ids and max(ids) >= self._vocab_size:
            raise RequestError(
                f"the tokenizer in {self._folder} gives token id {max(ids)}, but the model has {self._vocab_size} "
                "tokens; it belongs to another model: name the right one with tokenizer=..."
            )
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def _load(folder: Path) -> Any:  # noqa: ANN401  transformers has many classes of tokenizers and no common type
    from transformers import AutoTokenizer  # noqa: PLC0415  costs seconds; token ids alone need it not

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged file raises whatever the reader that meets it raises
        first = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"the tokenizer in {folder} cannot be loaded ({type(error).__name__}: {first}); fetch its files again, "
            "give token ids, or name another with tokenizer=..."
        ) from error
