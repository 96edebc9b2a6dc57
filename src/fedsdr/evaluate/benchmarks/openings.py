"""What comes before a prompt: the tokens with which its tokenizer begins a text, exactly once."""

from collections.abc import Sequence
from typing import Any

from fedsdr.core.errors import UserError
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat


def own_opening(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer by itself puts before a text: the one that begins a text
    (BOS), another, or none. What it puts after a text is no part of it: prompts are continued."""
    plain, whole = (
        list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True)
    )
    starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return whole[: next(starts, 0)]


def choose_opening(chat: ChatFormat, templated: bool, bos: bool | None) -> list[int]:
    """What is to precede prompts. Raises `UserError` where `bos` cannot be done.

    templated: whether prompts go through the chat template. bos: whether they begin with BOS;
    None: as the tokenizer does by itself, and as the template does, which training follows too.
    """
    mark = chat.tokenizer.bos_token_id
    if bos and mark is None:
        raise UserError("--bos: the tokenizer has no bos_token: leave the option out")
    if bos is False and templated and begins_with_bos(chat, [], templated):
        raise UserError(
            f"--no-bos: the chat template itself begins with {chat.tokenizer.bos_token!r}, as in "
            "training: leave the option out, or --chat"
        )
    if bos is None:
        return [] if templated else own_opening(chat.tokenizer)
    return (own_opening(chat.tokenizer) or [mark]) if bos else []


def begins_with_bos(chat: ChatFormat, opening: Sequence[int], templated: bool) -> bool:
    """Whether prompts begin with the tokenizer's BOS token, whatever puts it there."""
    text = chat.prompt_text((Turn("user", "a"),)) if templated else "a"
    mark = chat.tokenizer.bos_token_id
    return mark is not None and opened_ids(chat.ids(text), opening)[:1] == [mark]


def opened_ids(ids: list[int], opening: Sequence[int]) -> list[int]:
    """Token ids with the opening before them, unless they begin with it already."""
    opening = list(opening)
    return ids if ids[: len(opening)] == opening else opening + ids


def shortened_ids(ids: list[int], opening: Sequence[int], limit: int) -> list[int]:
    """The last of the token ids, at most `limit` (at least 1) of them, after what opens them."""
    if len(ids) <= limit:
        return ids
    kept = len(opening) if limit > len(opening) and ids[: len(opening)] == list(opening) else 0
    return ids[:kept] + ids[len(ids) - limit + kept :]
