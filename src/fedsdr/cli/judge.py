"""The command that has answers of a finished run's models judged by another model."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fedsdr.cli.session import RunFolder, command_session
from fedsdr.core.errors import UserError
from fedsdr.core.layout import JUDGE_FILE

if TYPE_CHECKING:
    from fedsdr.judge.asking import CostEstimate
    from fedsdr.judge.client import Endpoint

GO_ON: Final = "give the same command again to go on"


def judge_command(
    folder: RunFolder,
    questions: Annotated[
        Path, typer.Option(help="JSONL with turns, question, instruction or prompt; or its folder.")
    ],
    judge_model: Annotated[
        str, typer.Option("--judge", envvar="FEDSDR_JUDGE", help="The judging model's name.")
    ] = "",
    a: Annotated[str, typer.Option("--a", help="A model of the run: global, base, ...")] = "global",
    b: Annotated[str, typer.Option("--b", help="Its rival; without one, A is rated 1 to 10.")] = "",
    against: Annotated[Path | None, typer.Option(help="Another run, which B is of.")] = None,
    reference: Annotated[Path | None, typer.Option(help="FastChat's reference answers.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first questions alone.")] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="At most, of an answer's turn.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers written at a time.")] = 8,
    base_url: Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", show_envvar=True)] = "",
    key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="The judge is a reasoning model (o3, gpt-5).")
    ] = False,
    reply_tokens: Annotated[int, typer.Option(min=1, help="At most, of a reply.")] = 1024,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    rpm: Annotated[float, typer.Option(min=0, help="Requests a minute; 0: no bound.")] = 0,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that fails.")] = 6,
    backoff: Annotated[float, typer.Option(min=0, help="Seconds before the first retry.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds, of a request.")] = 120.0,
    price_in: Annotated[float | None, typer.Option(min=0, help="Of a million tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Of a million tokens.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Stop before it is passed.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before spending.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it costs.")] = False,
) -> None:
    """Have a run's models answer questions, and an OpenAI-compatible model judge the answers.

    The same command goes on where an interrupted one stopped. Results: judge.json in the run
    folder, and its report.
    """
    from fedsdr.api.judging import JudgeRequest, ask_judge, prepared_judging
    from fedsdr.judge.asking import Prices
    from fedsdr.report.terminal import print_judging
    from fedsdr.workflows.finished import open_finished

    options: dict[str, Any] = {
        "max_tokens": reply_tokens, "reasoning": reasoning, "timeout": timeout,
        "retries": retries, "backoff": backoff, "requests_per_minute": rpm,
        "concurrency": concurrency,
    }  # fmt: skip
    request = JudgeRequest(
        questions, a, b, against, reference, limit, answer_tokens, batch_size,
        Prices(price_in, price_out), max_cost,
    )  # fmt: skip
    with ExitStack() as held:
        with command_session(GO_ON) as reporter:
            run = open_finished(folder)
            endpoint = _endpoint(base_url, judge_model, None if dry_run else key_variable, options)
            prepared = held.enter_context(prepared_judging(run, request, endpoint, reporter))
            reporter.say(_cost(prepared.cost, endpoint.host))
        if dry_run:
            return
        if prepared.cost.requests and not yes and not _confirmed():
            typer.echo("nothing was asked")
            return
        with command_session(GO_ON) as reporter:
            result = ask_judge(prepared, reporter)
    print_judging(result)
    typer.echo(f"\njudgement: {folder / JUDGE_FILE}")


def _endpoint(
    base_url: str, model: str, key_variable: str | None, options: dict[str, Any]
) -> "Endpoint":
    """The judge; without a key's name, it is only described and never asked."""
    from fedsdr.api.judging import judge_endpoint
    from fedsdr.judge.client import OPENAI, Endpoint

    if key_variable is None:
        return Endpoint(base_url or OPENAI, model, "", **options)
    return judge_endpoint(model, base_url, key_variable, **options)


def _cost(cost: "CostEstimate", host: str) -> str:
    """What is still to be asked, in one line."""
    if not cost.requests:
        return "every verdict is there already: nothing is asked"
    text = f"to ask of {host}: {cost.requests} verdicts, about {cost.prompt_tokens} prompt tokens"
    if cost.likely is None:
        return f"{text} (with --price-in and --price-out: their cost)"
    return f"{text}, likely cost {cost.likely:.4g}, at most about {cost.most:.4g}"


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        with command_session():
            raise UserError("no terminal to confirm the cost at: give --yes (or --dry-run)")
    return typer.confirm("ask?")
