"""A step of local training against TRL's SFTTrainer on PEFT, and against the matrix products' rate.

    python benchmarks/training.py [--quick]        needs trl: pip install 'fedsdr[bench]'

A model of SmolLM2-135M's shape with random weights (30 blocks of width 576, vocabulary 49,152),
LoRA of rank 16 on all linear layers, AdamW, batches of 4. Texts are as long as Alpaca's prompts
with Llama-2-7B-chat's rewrites (`lengths.py`; a token is 4 characters, and 40 tokens of template);
their tokens are random. A token counts if it is of prompt or response, not if it is padding. All
take the same batches in turn, several a turn: batches differ in how much padding they need.

SFTTrainer runs its own collator, loss and backward pass (`training_step`) on what its accelerator
prepares, then clips, steps; its evaluation, logging and saving are left out. Its default is float32
weights under bfloat16 autocast, batches of 8 and gradient checkpointing; there ours takes a step of
8 too. The bound is the rate of a 2048-square product in the same turn, in the narrowest type of the
setting, over 4 N operations a token, N being all weights of matrix products, the vocabulary's too.

`streams` tells turn by turn what a frozen stream costs: two streams over one, and over PEFT's two.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedsdr.algorithms.contract import Loss, Schedule, Stage
from fedsdr.core.adapters import fresh_adapter
from fedsdr.data.example import Example
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.training.correction import Correction
from fedsdr.training.local import LocalTrainer
from lengths import records, source
from measure import Contender, Row, alternate, arguments, save, three, within_turns
from shapes import product_weights

TEMPLATE, CHARACTERS, LONGEST = 40, 4, 512  # tokens, characters a token, tokens
TURN = 20  # records that a contender takes in a turn
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SMALL = {
    **SHAPE, "hidden_size": 72, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512,
}  # fmt: skip
SIDE, PRODUCTS = 2048, 20
TABLES = ("float32", "bfloat16", "default")
PEFT = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
TRL = {"max_length": LONGEST, "report_to": "none", "output_dir": "/tmp/trl"}
TWO = "fedsdr, R beside S"


def examples(count: int, vocabulary: int) -> list[Example]:
    """Random tokens, as many as real records have."""
    draw, made = torch.Generator().manual_seed(0), []
    for each in records(count):
        prompt = TEMPLATE + each.instruction // CHARACTERS
        whole = min(LONGEST, prompt + 1 + each.rewrite // CHARACTERS)
        ids = torch.randint(2, vocabulary, (whole,), generator=draw).tolist()
        made.append(Example(tuple(ids[:prompt]), tuple(ids[prompt:])))
    return made


def base(dtype: torch.dtype, quick: bool) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SMALL if quick else SHAPE))).to(dtype).eval()


def batches(records: list[Example], size: int) -> Iterator[list[Example]]:
    return cycle([records[i : i + size] for i in range(0, len(records) - size + 1, size)])


def with_streams(model: Any) -> TwoStreamModel:
    """R, which will be trained, and S."""
    two = TwoStreamModel(model, "all-linear", 16, 32.0)
    for seed, stream in enumerate((Stream.RECTIFY, Stream.SMOOTH)):
        two.load(stream, fresh_adapter(two.blank(), torch.Generator().manual_seed(seed)))
    return two


def ours(
    two: TwoStreamModel,
    records: list[Example],
    *company: Stream,
    size: int = 4,
    again: bool = False,
) -> Contender:
    """The trainer's own step; again: with gradient checkpointing."""
    trainer = LocalTrainer(
        two, {"raw": records}, client="a", round=1, seed=0, batch_size=size, clip=1.0,
        weight_decay=0.0, pad=0, checkpointing=again,
    )  # fmt: skip
    parameters = two.train_only(Stream.RECTIFY)
    optimiser = torch.optim.AdamW(parameters.values(), lr=1e-4, fused=True)
    correction = Correction(Stage("rectify", "R", Schedule(1, 1e-4)), parameters)
    queue = batches(records, size)

    def step() -> float:
        chosen = next(queue)
        two.activate(Stream.RECTIFY, *company)
        trainer._backward(chosen, range(len(chosen)), trainer._summed(Loss(), folded=False))
        correction.apply()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return float(sum(map(len, chosen)))

    return step


def with_peft(model: Any, two: bool) -> Any:
    """PEFT's adapter; two: with a second, frozen one beside the trained one."""
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(model, LoraConfig(**PEFT))
    if two:
        peft.add_adapter("S", LoraConfig(**PEFT))
        peft.base_model.set_adapter(["default", "S"])
        for name, parameter in peft.named_parameters():
            parameter.requires_grad_(".default." in name)
    return peft


def rows_of_tokens(records: Sequence[Example]) -> list[dict[str, Any]]:
    """As TRL's collator takes them."""
    return [
        {
            "input_ids": [*e.prompt, *e.response],
            "completion_mask": [0] * len(e.prompt) + [1] * len(e.response),
        }
        for e in records
    ]


def sft_trainer(model: Any, rows: list[dict[str, Any]], size: int, **own: Any) -> Any:
    """TRL's trainer in the state in which `train` enters its loop."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, "<pad>")),
        pad_token="<pad>", eos_token="<end>", unk_token="<pad>",
    )  # fmt: skip
    config = SFTConfig(
        **TRL, use_cpu=model.device.type == "cpu", per_device_train_batch_size=size,
        completion_only_loss=True, **own,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, config, train_dataset=Dataset.from_list(rows), processing_class=words
    )
    if config.activation_checkpointing:
        trainer.model.activation_checkpointing_enable()
    trainer.create_optimizer()  # what follows puts the forward pass under autocast
    prepared = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped, trainer.optimizer = prepared
    return trainer


def sft(
    model: Any, records: list[Example], size: int = 4, two: bool = False, **own: Any
) -> Contender:
    """TRL's step; two: with a second, frozen adapter. Has done one, to see what it runs under."""
    rows = rows_of_tokens(records)
    trainer = sft_trainer(with_peft(model, two), rows, size, **own)
    queue = cycle([rows[i : i + size] for i in range(0, len(rows) - size + 1, size)])

    def step() -> float:
        chosen = next(queue)
        inputs = trainer.data_collator(chosen)
        tokens = (inputs["labels"] != -100).sum().to(trainer.args.device)
        trainer.training_step(trainer.model_wrapped, inputs, tokens)
        torch.nn.utils.clip_grad_norm_(
            [p for p in trainer.model.parameters() if p.requires_grad], 1.0
        )
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return float(sum(len(row["input_ids"]) for row in chosen))

    check_settings(trainer, step)
    return step


def check_settings(trainer: Any, step: Contender) -> None:
    """A step, in which a layer of the first block tells whether autocast and checkpointing are on:
    a block that is checkpointed computes twice."""
    device, seen = trainer.model.device.type, []
    layer = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.Linear))
    handle = layer.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled(device)))
    step()
    handle.remove()
    config = trainer.args
    assert len(seen) == (2 if config.activation_checkpointing else 1), seen
    assert set(seen) == {config.bf16}, seen


def products(dtype: torch.dtype, matrices: int, device: str = "cpu", side: int = SIDE) -> Contender:
    """Square products; the tokens that could be trained on with as many operations."""
    a = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> float:
        for _ in range(PRODUCTS):
            a @ a
        return PRODUCTS * 2 * side**3 / (4 * matrices)

    return multiply


def rows_of(
    setting: str, rates: Mapping[str, list[float]], against: str = "SFTTrainer"
) -> list[Row]:
    """Medians, and within each turn the ratios to another and to the bound."""
    found: list[Row] = []
    for name, its in rates.items():
        ratios = within_turns(its, rates[against])
        shares = within_turns(its, rates["matrix products"])
        found.append(
            {
                "setting": setting, "contender": name, "tokens/s": three(statistics.median(its)),
                "times": three(statistics.median(ratios)),
                "least": three(min(ratios)), "most": three(max(ratios)),
                "of the bound": three(statistics.median(shares)),
            }
        )  # fmt: skip
    return found


def streams_of(setting: str, rates: Mapping[str, list[float]]) -> list[Row]:
    """Our speed with a frozen stream beside the trained one, over that of others, turn by turn."""
    found: list[Row] = []
    for other in ("fedsdr, R", "SFTTrainer, two adapters"):
        ratios = [three(each) for each in within_turns(rates[TWO], rates[other])]
        found.append(
            {
                "setting": setting, "R beside S over": other,
                "times": three(statistics.median(ratios)),
                "turn by turn": ", ".join(map(str, ratios)),
            }
        )  # fmt: skip
    return found


def contenders(table: str, quick: bool) -> dict[str, Contender]:
    """Those of a table, a dtype's or SFTTrainer as it comes; each has done one step."""
    given = examples(2 * TURN, (SMALL if quick else SHAPE)["vocab_size"])
    dtype = torch.bfloat16 if table == "bfloat16" else torch.float32
    matrices = product_weights(base(dtype, quick))
    two = with_streams(base(dtype, quick))
    if table == "default":
        size, narrow = 8, torch.bfloat16
        steps = {
            "fedsdr, R": ours(two, given, size=size),
            "fedsdr, R, bfloat16": ours(with_streams(base(narrow, quick)), given, size=size),
            "SFTTrainer": sft(base(dtype, quick), given, size),
        }
    else:
        size, narrow = 4, dtype
        plain = {"bf16": False, "activation_checkpointing": False}
        steps = {
            "fedsdr, R": ours(two, given),
            TWO: ours(two, given, Stream.SMOOTH),
            "SFTTrainer": sft(base(dtype, quick), given, **plain),
            "SFTTrainer, two adapters": sft(base(dtype, quick), given, two=True, **plain),
        }
    for name, step in steps.items():
        if name.startswith("fedsdr"):
            step()
    count = 1 if quick else TURN // size
    many = {name: repeated(step, count) for name, step in steps.items()}
    return {"matrix products": products(narrow, matrices), **many}


def repeated(step: Contender, times: int) -> Contender:
    return lambda: sum(step() for _ in range(times))


def main() -> None:
    given = arguments(__doc__).parse_args()
    tables: dict[str, list[Row]] = {"streams": []}
    for table in TABLES:
        rates = alternate(contenders(table, given.quick), 1 if given.quick else 3, warm=False)
        tables[table] = rows_of(table, rates)
        if TWO in rates:
            tables["streams"] += streams_of(table, rates)
        print(json.dumps(tables[table]), file=sys.stderr, flush=True)
    save("training", tables, quick=given.quick, lengths=source())


if __name__ == "__main__":
    main()
