"""OneFormer's task: the text "the task is instance" as the numbers that the network takes.

The network was trained with one text for each task. A served model has one task, so its numbers are a constant of the
graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from m2f.errors import shown
from m2f.parameters import is_int
from m2f_export.export_errors import ExportError, reason
from m2f_export.files import check_file, listing
from m2f_export.sources.huggingface_folder import ONEFORMER

# "the task is ..." in CLIP's vocabulary, between its marks of begin and end
_TOKENS = {
    "instance": (49406, 518, 10549, 533, 34572, 49407),
    "panoptic": (49406, 518, 10549, 533, 1072, 24755, 49407),
    "semantic": (49406, 518, 10549, 533, 29119, 1550, 49407),
}
TASKS = tuple(_TOKENS)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


def check_task(task: str | None, architecture: str, folder: Path) -> None:
    """Refuse a OneFormer without a task, and a task for another model.

    Raises:
        ExportError: the message names the option.
    """
    if architecture == ONEFORMER and task is None:
        raise ExportError(f"{folder} is a OneFormer, whose answers depend on its task: --task {' or '.join(TASKS)}")
    if architecture != ONEFORMER and task is not None:
        raise ExportError(f"--task is for OneFormer; {folder} is {architecture}: leave it out")


def task_input(folder: Path, task: str, length: object) -> torch.Tensor:
    """Return the input of OneFormer's task encoder: float32 [1, length], padded with 0.

    Args:
        folder: the model's folder; if it has a tokenizer, that one must make the same numbers.
        task: one of `TASKS`.
        length: `task_seq_len` of `config.json`.

    Raises:
        ExportError: the folder's tokenizer makes other numbers, or the length is not allowed.
    """
    tokens = _TOKENS[task]
    if not is_int(length) or length < len(tokens):  # type: ignore[operator]
        raise ExportError(
            f"{folder / 'config.json'}: task_seq_len is {shown(length)}; allowed: a whole number >= {len(tokens)}"
        )
    padded = [*tokens, *[0] * (length - len(tokens))]  # type: ignore[operator]
    if any(name in _TOKENIZER_FILES for name in listing(folder)):
        _check_tokenizer(folder, task, padded)
    return torch.tensor([padded], dtype=torch.float32)


def _check_tokenizer(folder: Path, task: str, wanted: list[int]) -> None:
    for name in _TOKENIZER_FILES:
        if (folder / name).exists():
            check_file(folder / name)
    made = _tokenize(folder, f"the task is {task}", len(wanted))
    if made != wanted:
        end = max(len(_TOKENS[task]), *(index + 1 for index, token in enumerate(made) if token), 0)
        raise ExportError(
            f'{folder}: its tokenizer makes {made[:end]} of "the task is {task}", CLIP\'s makes {list(_TOKENS[task])}; '
            "allowed: the tokenizer of CLIP, complete, or no tokenizer's files"
        )


def _tokenize(folder: Path, text: str, length: int) -> list[int]:
    """Return the numbers that OneFormerProcessor of transformers makes of a text."""
    import transformers  # noqa: PLC0415 (seconds to import; the command line reads TASKS)

    try:
        tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        made = tokenizer([text], padding="max_length", max_length=length, truncation=True)
    except Exception as error:  # any content of the files reaches the tokenizer
        raise ExportError(f"{folder}: its tokenizer cannot be loaded as CLIP's: {reason(error)}") from error
    pairs = zip(made["input_ids"][0], made["attention_mask"][0], strict=True)
    return [token * mask for token, mask in pairs]
