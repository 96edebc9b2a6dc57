"""The lab's base model: a small Llama trained from scratch on what the world believes.

Its corpus has two skills. Recall: a question gets the remembered value in the base model's own
wordy style. Rewriting: a question with a reference answer gets the answer in the base style;
where the reference contradicts memory, the target follows memory with probability
`stubbornness`. That conflict of parametric knowledge against context is what makes rewrites
hallucinate (the Rewrite Paradox); pure copying is learnt perfectly and would show none.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedsdr.core import files, seeds
from fedsdr.core.progress import Reporter
from fedsdr.data.batches import collate_examples
from fedsdr.data.example import Example
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.lab.world import (
    BASE_STYLE,
    CLIENT_ATTRIBUTES,
    CLIENT_STYLES,
    FIRST,
    QUESTIONS,
    REWRITE_PROMPT,
    SECOND,
    Fact,
    World,
    WorldOptions,
    world_vocabulary,
)
from fedsdr.training.loss import summed_loss

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }} <end> "
    "{% else %}<ask> {{ message['content'] }} <answer> {% endif %}"
    "{% endfor %}"
)


RECIPE: Final = 1  # goes up with every change of the corpus, the tokenizer or the training below


@dataclass(frozen=True)
class PretrainOptions:
    """Size of the base model and length of its training."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    steps: int = 1500
    batch_size: int = 64
    lr: float = 3e-3


def base_model_folder(
    world: World, options: PretrainOptions, cache: Path, reporter: Reporter
) -> Path:
    """The folder of this world's base model, trained on first use and cached."""
    key = {"world": _pretraining_key(world.options), "pretrain": asdict(options), "recipe": RECIPE}
    name = f"lab-{seeds.derive_seed(0, str(key)):016x}"
    folder = cache / "models" / name
    if not folder.exists():
        tokenizer = build_tokenizer(world)
        model = pretrain_base(world, options, tokenizer, reporter)
        _save(model, tokenizer, folder)
        files.write_json(folder.with_suffix(".json"), key)
    return folder


OWNERSHIP: Final = ("alpha", "imbalance")  # options that change only the owners of facts


def _pretraining_key(options: WorldOptions) -> dict[str, Any]:
    """The options of a world that its base model depends on: all but the ownership of facts."""
    kinds = min(options.clients, len(CLIENT_ATTRIBUTES))
    known = asdict(replace(options, clients=kinds))
    return {key: value for key, value in known.items() if key not in OWNERSHIP}


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder under a temporary name, so that a killed run leaves no half model."""

    def write(temporary: Path) -> None:
        temporary.mkdir()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    files.write_folder(folder, write)


def save_outline(world: World, options: PretrainOptions, folder: Path) -> None:
    """The base model's configuration and tokenizer, without weights."""
    tokenizer = build_tokenizer(world)
    _config(options, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of about 220 words with a chat template."""
    specials = ["<pad>", "<unk>", "<end>", "<ask>", "<answer>"]
    words = {word: i for i, word in enumerate([*specials, *world_vocabulary(world.options)])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        extra_special_tokens=["<ask>", "<answer>"],
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pretrain_base(
    world: World, options: PretrainOptions, tokenizer: PreTrainedTokenizerFast, reporter: Reporter
) -> LlamaForCausalLM:
    """Train the base model; the learning rate warms up and decays to zero along a cosine."""
    torch.manual_seed(seeds.derive_seed(world.options.seed, "base model"))
    model = LlamaForCausalLM(_config(options, tokenizer))
    chat = ChatFormat(tokenizer)
    corpus = Corpus(world, chat)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01, fused=True)
    warm_up = max(1, options.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(
            (step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / options.steps)
        ),
    )
    with reporter.bar("training the base model", options.steps) as bar:
        for step in range(options.steps):
            examples = corpus.batch(options.batch_size, rewriting=step % 2 == 1)
            batch = collate_examples(examples, chat.end_of_turn)
            loss = summed_loss(model, batch) / batch.response_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            bar.advance(note=f"loss {float(loss.detach()):.3f}" if step % 20 == 0 else None)
    return model.eval()


def _config(options: PretrainOptions, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=options.hidden, intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers, num_attention_heads=options.heads,
        num_key_value_heads=options.heads, max_position_embeddings=128, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        # With the usual 0.02 copying from the reference takes ten times as many steps to learn.
        initializer_range=0.08,
    )  # fmt: skip


class Corpus:
    """The pretraining examples, drawn without end."""

    def __init__(self, world: World, chat: ChatFormat) -> None:
        self.world, self.chat = world, chat
        self.random = random.Random(seeds.derive_seed(world.options.seed, "corpus"))

    def batch(self, size: int, rewriting: bool) -> Sequence[Example]:
        """`size` examples of one skill: equal lengths make little padding."""
        draw = self.rewriting if rewriting else self.recall
        return [draw(fact) for fact in self.random.choices(self.world.facts, k=size)]

    def recall(self, fact: Fact) -> Example:
        """A question, and what the base model remembers."""
        question = fact.question(self.random.randrange(len(QUESTIONS)))
        return self._example(question, fact.answer(self._style(), fact.memory))

    def rewriting(self, fact: Fact) -> Example:
        """A question with a reference answer, and the same in the base style, or what the
        base model stubbornly remembers."""
        question = fact.question(self.random.randrange(len(QUESTIONS)))
        given = self._any_value()
        stubborn = self.random.random() < self.world.options.stubbornness
        reference = fact.answer(self.random.choice((*CLIENT_STYLES, BASE_STYLE)), given)
        prompt = REWRITE_PROMPT.format(instruction=question, response=reference)
        return self._example(prompt, fact.answer(BASE_STYLE, fact.memory if stubborn else given))

    def _style(self) -> str:
        if self.random.random() < self.world.options.style_overlap:
            return self.random.choice(CLIENT_STYLES)
        return BASE_STYLE

    def _any_value(self) -> str:
        return f"{self.random.choice(FIRST)} {self.random.choice(SECOND)}"

    def _example(self, prompt: str, response: str) -> Example:
        ids = self.chat.prompt_ids((Turn("user", prompt),))
        return Example(tuple(ids), tuple(self.chat.response_ids(response)))
