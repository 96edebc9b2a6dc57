"""A step of local training against TRL's SFTTrainer on PEFT, and against the matrix products' rate.

    python benchmarks/training.py [--quick]        needs trl: pip install 'fedsdr[bench]'

A model of SmolLM2-135M's shape with random weights (30 blocks of width 576, vocabulary 49,152),
LoRA of rank 16 on all linear layers, AdamW, batches of 4. Texts are as long as Alpaca's prompts
with Llama-2-7B-chat's rewrites ($FEDSDR_DATA/paired; a token is 4 characters, and 40 tokens of
template), or of a synthetic distribution with the same quantiles; their tokens are random. A token
counts if it is of prompt or response, not if it is padding. All take the same batches in turn.

SFTTrainer runs its own collator, loss and backward pass (`training_step`), then clips, steps; its
evaluation, logging and saving are left out. Its default is float32 weights under bfloat16 autocast,
batches of 8 and gradient checkpointing. The bound is the rate of a 2048-square product in the same
turn over 4 N operations a token, N being all weights of matrix products, the vocabulary's included.
"""

import json
import os
import statistics
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedsdr.adapters import fresh
from fedsdr.algorithms.contract import Schedule, Stage
from fedsdr.data.template import Example
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.training.correction import Correction
from fedsdr.training.local import LocalTrainer
from measure import Contender, Row, alternate, arguments, save, three

PROJECT = Path(__file__).parents[1]
REAL = Path(os.environ.get("FEDSDR_DATA", PROJECT.parent / "shared" / "data"))
QUANTILES = [5, 31, 45, 68, 103, 142, 181, 225, 307, 450]  # of the real lengths, in tokens
TEMPLATE, LONGEST = 40, 512
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SMALL = {**SHAPE, "hidden_size": 72, "intermediate_size": 128, "num_hidden_layers": 2}
SIDE, PRODUCTS = 2048, 20
TABLES = ("float32", "bfloat16", "default")
PEFT = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
TRL = {"max_length": LONGEST, "use_cpu": True, "report_to": "none", "output_dir": "/tmp/trl"}


def lengths() -> list[tuple[int, int]]:
    """(prompt, response) of each record, in tokens."""
    path = REAL / "paired" / "alpaca_distilled_llama2_7b_chat.json"
    if not path.exists():
        print(f"{path} is not there (set FEDSDR_DATA): lengths are synthetic")
        return [(TEMPLATE + 20, n) for n in QUANTILES * 20]
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        (TEMPLATE + len(row["instruction"] + row["input"]) // 4, 1 + len(row["output"]) // 4)
        for row in rows
    ]


def examples(count: int) -> list[Example]:
    draw = torch.Generator().manual_seed(0)
    known = lengths()
    chosen = torch.randperm(len(known), generator=draw)[:count].tolist()
    made = []
    for prompt, response in (known[i] for i in chosen):
        response = min(response, LONGEST - prompt)
        ids = torch.randint(2, 49152, (prompt + response,), generator=draw).tolist()
        made.append(Example(tuple(ids[:prompt]), tuple(ids[prompt:])))
    return made


def base(dtype: torch.dtype, quick: bool) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(SMALL if quick else SHAPE))).to(dtype).eval()


def batches(records: list[Example], size: int) -> Iterator[list[Example]]:
    return cycle([records[i : i + size] for i in range(0, len(records) - size + 1, size)])


def ours(model: Any, records: list[Example], *company: Stream) -> Contender:
    """The trainer's own step."""
    two = TwoStreamModel(model, "all-linear", 16, 32.0)
    for seed, stream in enumerate((Stream.RECTIFY, Stream.SMOOTH)):
        two.load(stream, fresh(two.blank(), torch.Generator().manual_seed(seed)))
    two.activate(Stream.RECTIFY, *company)
    trainer = LocalTrainer(
        two, {"raw": records}, client="a", round=1, seed=0, batch_size=4, clip=1.0,
        weight_decay=0.0, pad=0,
    )  # fmt: skip
    parameters = two.train_only(Stream.RECTIFY)
    optimiser = torch.optim.AdamW(parameters.values(), lr=1e-4, fused=True)
    correction = Correction(Stage("rectify", "R", Schedule(1, 1e-4)), parameters)
    queue = batches(records, 4)

    def step() -> float:
        chosen = next(queue)
        trainer._backward(chosen, trainer._summed_loss)
        correction.apply()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return float(sum(map(len, chosen)))

    return step


def sft(
    model: Any, records: list[Example], size: int = 4, two: bool = False, **own: Any
) -> Contender:
    """TRL's step; two: with a second, frozen adapter beside the trained one."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    peft = get_peft_model(model, LoraConfig(**PEFT))
    if two:
        peft.add_adapter("S", LoraConfig(**PEFT))
        peft.base_model.set_adapter(["default", "S"])
        for name, parameter in peft.named_parameters():
            parameter.requires_grad_(".default." in name)
    rows = [
        {
            "input_ids": [*e.prompt, *e.response],
            "completion_mask": [0] * len(e.prompt) + [1] * len(e.response),
        }
        for e in records
    ]
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, "<pad>")),
        pad_token="<pad>", eos_token="<end>", unk_token="<pad>",
    )  # fmt: skip
    config = SFTConfig(**TRL, per_device_train_batch_size=size, completion_only_loss=True, **own)
    trainer = SFTTrainer(
        peft, config, train_dataset=Dataset.from_list(rows), processing_class=words
    )
    trainer.create_optimizer()
    queue = cycle([rows[i : i + size] for i in range(0, len(rows) - size + 1, size)])

    def step() -> float:
        chosen = next(queue)
        inputs = trainer.data_collator(chosen)
        trainer.training_step(trainer.model, inputs, (inputs["labels"] != -100).sum())
        torch.nn.utils.clip_grad_norm_(
            [p for p in trainer.model.parameters() if p.requires_grad], 1.0
        )
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return float(sum(len(row["input_ids"]) for row in chosen))

    return step


def products(dtype: torch.dtype, matrices: int) -> Contender:
    """Square products; the tokens that could be trained on with as many operations."""
    a = torch.randn(SIDE, SIDE).to(dtype)

    def multiply() -> float:
        for _ in range(PRODUCTS):
            a @ a
        return PRODUCTS * 2 * SIDE**3 / (4 * matrices)

    return multiply


def rows_of(setting: str, rates: dict[str, list[float]]) -> list[Row]:
    """Medians, and within each turn the ratios to SFTTrainer and to the bound."""
    found: list[Row] = []
    for name, its in rates.items():
        ratios = [mine / base for mine, base in zip(its, rates["SFTTrainer"], strict=True)]
        shares = [mine / top for mine, top in zip(its, rates["matrix products"], strict=True)]
        found.append(
            {
                "setting": setting, "contender": name, "tokens/s": three(statistics.median(its)),
                "times": three(statistics.median(ratios)),
                "least": three(min(ratios)), "most": three(max(ratios)),
                "of the bound": three(statistics.median(shares)),
            }
        )  # fmt: skip
    return found


def contenders(table: str, quick: bool) -> dict[str, Contender]:
    """Those of a table: a dtype's, or SFTTrainer as it comes."""
    records = examples(40)
    dtype = torch.bfloat16 if table == "bfloat16" else torch.float32
    matrices = sum(p.numel() for p in base(dtype, quick).parameters() if p.dim() == 2)
    chosen = {
        "matrix products": products(dtype, matrices),
        "fedsdr, R": ours(base(dtype, quick), records),
    }
    if table == "default":
        return {**chosen, "SFTTrainer": sft(base(dtype, quick), records, 8)}
    plain = {"bf16": False, "gradient_checkpointing": False}
    return {
        **chosen,
        "fedsdr, R beside S": ours(base(dtype, quick), records, Stream.SMOOTH),
        "SFTTrainer": sft(base(dtype, quick), records, **plain),
        "SFTTrainer, two adapters": sft(base(dtype, quick), records, two=True, **plain),
    }


def main() -> None:
    given = arguments(__doc__).parse_args()
    tables = {}
    for table in TABLES:
        rates = alternate(contenders(table, given.quick), 1 if given.quick else 7)
        tables[table] = rows_of(table, rates)
        print(json.dumps(tables[table]), file=sys.stderr, flush=True)
    save("training", tables, quick=given.quick)


if __name__ == "__main__":
    main()
