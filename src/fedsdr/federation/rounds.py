"""The round loop, for any engine and any algorithm: sample, run, aggregate, commit, evaluate."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from fedsdr.algorithms.contract import Algorithm, Round, ServerState, Update, check_update
from fedsdr.algorithms.participation import RoundOptions, cohort_of, is_due
from fedsdr.core import files, seeds
from fedsdr.core.adapters import Adapter, all_finite, size_in_bytes
from fedsdr.core.errors import UserError
from fedsdr.core.layout import METRICS_FILE
from fedsdr.core.metrics import Metrics, merge_all, metric_values
from fedsdr.core.progress import Reporter
from fedsdr.federation.checkpoint import load_checkpoint, save_checkpoint
from fedsdr.recipe.methods import Method


class Participant(NamedTuple):
    """A client's answer to one round."""

    client: str
    update: Update


class Absent(NamedTuple):
    """A client that was asked and has no part in the round, and why."""

    client: str
    reason: str


class Engine(Protocol):
    """Where the client halves run: in this process, or on other machines."""

    def clients(self) -> Sequence[str]:
        """Names of the clients that can take part."""
        ...

    def run_round(
        self, algorithm: Algorithm, shared: Adapter, round: int, cohort: Sequence[str]
    ) -> Iterable[Participant | Absent]:
        """Run the client half of round `round` (from 1) on each client; answers in their order."""
        ...

    def population(self) -> float:
        """Sum of the weights of all clients that are known so far; it may grow in a round."""
        ...

    def commit(self, round: int, cohort: Sequence[str]) -> None:
        """The server has committed the round: what came before it may be forgotten."""
        ...


Evaluation = Callable[[Adapter], Metrics]
Observer = Callable[[Mapping[str, Any]], None]
Delivery = Callable[[ServerState], None]


def ignore_row(row: Mapping[str, Any]) -> None:
    """Observe nothing."""


def without_delivery(state: ServerState) -> None:
    """Deliver nothing."""


class Periodic(NamedTuple):
    """A further evaluation with a period of its own, in rounds, as `RoundOptions.every`."""

    every: int
    evaluate: Evaluation


class RoundHooks(NamedTuple):
    """What a run does with its rounds, apart from training.

    evaluate: metrics of the deployed adapter, every `RoundOptions.every` rounds; None where clients
        send no scores.
    benchmark: a further evaluation.
    observe: is given each committed line of the log, after a resume those from before as well.
    deliver: is given the state after the last round, before that is evaluated: what comes of
        training is written whatever an evaluation does.
    """

    evaluate: Evaluation | None = None
    benchmark: Periodic | None = None
    observe: Observer = ignore_row
    deliver: Delivery = without_delivery


NO_HOOKS: Final = RoundHooks()


def run_rounds(
    method: Method,
    engine: Engine,
    first: Adapter,
    options: RoundOptions,
    reporter: Reporter,
    hooks: RoundHooks = NO_HOOKS,
) -> ServerState:
    """Run, or go on with, all rounds of a method; returns the final server state.

    first: R^0. The method's folder holds the checkpoint and metrics.jsonl, a line a round:
    {"round", "clients", "train", "eval"}; round 0 is the evaluation before training, and there is
    no "eval" where none was due.
    """
    algorithm, folder = method.algorithm, method.folder
    due = [Periodic(options.every, hooks.evaluate)] if hooks.evaluate else []
    due += [hooks.benchmark] if hooks.benchmark else []
    saved = load_checkpoint(folder)
    done, state = saved if saved else (0, algorithm.init(first))
    if done == options.rounds:
        hooks.deliver(state)
    if saved is None:
        row = {"round": 0, **_evaluations(algorithm.deployed(state), due, 0, options.rounds)}
        files.write_json_lines(folder / METRICS_FILE, [row])
        save_checkpoint(folder, 0, state)
    else:
        engine.commit(done, engine.clients())  # the run may have died just before it could
    for row in _forget_uncommitted(folder / METRICS_FILE, done):
        hooks.observe(row)
    with reporter.bar(f"{method.name}: rounds", options.rounds) as bar:
        bar.advance(done)
        for round in range(done + 1, options.rounds + 1):
            cohort = cohort_of(engine.clients(), options, round)
            own = Round(
                round,
                seeds.derive_seed(options.seed, "server", round),
                secret=seeds.derive_secret(options.secret, "server", round),
            )
            state, row = run_round(algorithm, engine, state, own, cohort, options.quorum)
            if round == options.rounds:
                hooks.deliver(state)
            row |= _evaluations(algorithm.deployed(state), due, round, options.rounds)
            files.append_json_line(folder / METRICS_FILE, row)
            save_checkpoint(folder, round, state)
            engine.commit(round, cohort)
            hooks.observe(row)
            bar.advance(note=_note(row))
    return state


def run_round(
    algorithm: Algorithm,
    engine: Engine,
    state: ServerState,
    round: Round,
    cohort: Sequence[str],
    quorum: int | None = None,
) -> tuple[ServerState, dict[str, Any]]:
    """One round: broadcast, fold the updates as they come, finish. Returns the log line too.

    An update that cannot be aggregated is left out, and so is a client that gives none; with fewer
    than `quorum` updates the round is an error, and nothing of it remains.
    """
    began = time.perf_counter()
    shared = algorithm.broadcast(state)
    like = algorithm.uploads(state, round)
    fold = algorithm.start(state, round)
    metrics: dict[str, Metrics] = {}
    absent: dict[str, str] = {}
    bytes_up = 0
    for answer in engine.run_round(algorithm, shared, round.number, cohort):
        try:
            update = _update(answer)
            check_update(answer.client, update, like, algorithm.ranks)
            fold = algorithm.add(fold, update)
        except ValueError as error:
            absent[answer.client] = str(error)
            _check_quorum(round.number, len(cohort), absent, quorum)
            continue
        metrics[answer.client] = update.metrics
        bytes_up += size_in_bytes(update.change)
    population = engine.population()
    if state.population not in (0, population):
        state = algorithm.rescaled(state, state.population / population)
    state = algorithm.finish(state, fold, round._replace(population=population))
    state = replace(state, population=population)
    if not all_finite(state.adapter):
        raise UserError(
            f"the global adapter became NaN or infinite in round {round.number}: lower the "
            "learning rate of clients (local.rectify_lr) or server (options)"
        )
    train = metric_values(merge_all([*metrics.values(), state.metrics])) | {
        "bytes_up": bytes_up,
        "bytes_down": size_in_bytes(shared) * len(cohort),
        "seconds": round_seconds(began),
    }
    missing = {"absent": absent} if absent else {}
    return state, {"round": round.number, "clients": [*metrics], **missing, "train": train}


def _update(answer: Participant | Absent) -> Update:
    if isinstance(answer, Absent):
        raise ValueError(answer.reason)
    return answer.update


def _check_quorum(round: int, asked: int, absent: Mapping[str, str], quorum: int | None) -> None:
    """Raise `UserError` where those that are left are too few."""
    needed = asked if quorum is None else min(quorum, asked)
    if asked - len(absent) < needed:
        reasons = "; ".join(f"{client}: {reason}" for client, reason in absent.items())
        raise UserError(
            f"round {round} needs the updates of {needed} of {asked} clients, and {len(absent)} "
            f"gave none ({reasons})"
        )


def finite_values(metrics: Metrics, round: int) -> dict[str, float]:
    """The evaluation's means; raises `UserError` for a NaN or infinite one."""
    found = metric_values(metrics)
    for name, value in found.items():
        if not math.isfinite(value):
            raise UserError(
                f"evaluation after round {round} gave {name} = {value}: "
                + ("lower the learning rate" if round else "the base model itself is broken")
            )
    return found


def round_seconds(began: float) -> float:
    return float(f"{time.perf_counter() - began:.4g}")


def _evaluations(
    deployed: Adapter, periodic: Sequence[Periodic], round: int, rounds: int
) -> dict[str, Any]:
    """{"eval": all metrics that are due after a round}; {} where none is."""
    due = [each for each in periodic if is_due(round, rounds, each.every)]
    if not due:
        return {}
    found: dict[str, float] = {}
    for each in due:
        found |= finite_values(each.evaluate(deployed), round)
    return {"eval": found}


def _forget_uncommitted(path: Path, done: int) -> list[dict[str, Any]]:
    """Drop the lines after round `done`; returns the others."""
    rows = files.read_json_lines(path)
    kept = [row for row in rows if row["round"] <= done]
    if [row["round"] for row in kept] != list(range(done + 1)):
        raise UserError(
            f"{path} does not have a line for each round up to {done}, which the checkpoint says "
            "are done: put back the file as it was, or give another --out"
        )
    files.write_json_lines(path, kept)
    return kept


def _note(row: dict[str, Any]) -> str:
    """The training losses of R (rectify) and S (smooth), for the progress bar."""
    losses = {k.removeprefix("loss/"): v for k, v in row["train"].items() if k.startswith("loss/")}
    return "  ".join(f"{name[0].upper()} {value:.3f}" for name, value in losses.items())
