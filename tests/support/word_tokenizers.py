"""Word tokenizers that differ in what they put before and after a text."""

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from support import tiny_models, tiny_recipe


def opening_tokenizer(bos: bool, eos: bool = False, template: str = tiny_models.CHAT) -> Any:
    """Of the size of `tiny_models`, for words of the benchmarks' files.

    bos, eos: whether it puts its <s> before a text, and its <end> after one.
    """
    words = [*tiny_models.SPECIALS, *"A B C D (A) (B) Answer: cat A. B. C. D. No. Yes.".split()]
    words += [
        *tiny_recipe.WORDS,
        *(word for word in tiny_models.WORDS if word not in tiny_recipe.WORDS),
    ]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate(dict.fromkeys(words[:60]))}, "<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    marks = [("<s>", tiny_models.IDS["bos_token_id"]), ("<end>", tiny_models.IDS["eos_token_id"])]
    parts = ["<s>"] * bos + ["$A"] + ["<end>"] * eos
    core.post_processor = TemplateProcessing(single=" ".join(parts), special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<end>", pad_token="<pad>",
        unk_token="<unk>", chat_template=template,
    )  # fmt: skip
