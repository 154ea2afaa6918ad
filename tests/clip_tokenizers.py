"""The files of CLIP's tokenizer, cut down to the words of OneFormer's tasks, with the numbers of the real one."""

import itertools
import json

NUMBERS = {
    "the</w>": 518, "task</w>": 10549, "is</w>": 533, "instance</w>": 34572, "pan": 1072, "optic</w>": 24755,
    "seman": 29119, "tic</w>": 1550, "<|startoftext|>": 49406, "<|endoftext|>": 49407,
}  # fmt: skip
# Merges of the earlier words come first, and so are done first: "an" belongs to "pan", not to "instance".
WORDS = ("instance</w>", "pan", "optic</w>", "seman", "tic</w>", "the</w>", "is</w>", "task</w>")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(folder, words=WORDS):
    """Write `vocab.json` and `merges.txt`; without a word, the tokenizer makes other numbers of its letters."""
    vocab = {letter + end: number for number, (letter, end) in enumerate(itertools.product(LETTERS, ("", "</w>")))}
    merges = []
    for word in words:
        letters = list(word.removesuffix("</w>"))
        letters[-1] += "</w>" * word.endswith("</w>")
        begun = letters[0]
        for letter in letters[1:]:
            merges += [f"{begun} {letter}"] if f"{begun} {letter}" not in merges else []
            begun += letter
            vocab.setdefault(begun, NUMBERS.get(begun, 100 + len(vocab)))
    (folder / "vocab.json").write_text(json.dumps(vocab | NUMBERS))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
