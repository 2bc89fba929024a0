"""Text to token ids and back, through transformers, which is imported when text is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanoinfer.request import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class Tokenizer:
    """The tokenizer of a model folder; RequestError when the folder has none."""

    def __init__(self, folder: Path) -> None:
        if not any((folder / name).is_file() for name in _FILES):
            raise RequestError(f"{folder} holds no tokenizer; give token ids, or name one with tokenizer=...")
        from transformers import AutoTokenizer  # noqa: PLC0415  costs seconds; token ids alone need it not

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the model expects around a text."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text
