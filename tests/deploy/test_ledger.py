"""What a client releases under differential privacy is counted for life, whoever asks, under
whatever name, and ends at its own limit."""

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from fedsdr.algorithms.accounting import single_epsilon
from fedsdr.core import files
from fedsdr.core.adapters import Adapter
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.deploy.client.ledger import LEDGER, BudgetError, Ledger, UpdateKey
from fedsdr.deploy.client.operations import ClientKeys, ClientSide
from fedsdr.deploy.protocol.agreement import agreement_digest
from fedsdr.deploy.protocol.messages import Answer, Request, decode_answer, encode_message
from fedsdr.deploy.protocol.signing import UNSIGNED, open_sealed, seal_payload
from fedsdr.deploy.sites.init import init_federation, own_recipe
from fedsdr.deploy.sites.status import client_status
from fedsdr.recipe.load import load_recipe, override_recipe
from fedsdr.recipe.methods import resolve_methods
from fedsdr.recipe.sections.federation import Privacy
from fedsdr.workflows.privacy_loss import planned_epsilon
from support import tiny_recipe
from support.message_lines import client_sides

NOISE = 4.0
ALLOWED = 3  # releases
BEGAN: dict[str, int] = {}  # run -> its time, of all that were ever asked for here


def spent(releases: int, local: bool = True) -> float:
    return single_epsilon(NOISE, releases, 1e-5, local)


def privacy_of(mode: str = "local", limit: float | None = None, **more: Any) -> Privacy:
    noise = {"mode": mode, "clip": 0.1, "noise_multiplier": NOISE, "lifetime_epsilon": limit}
    return Privacy(**{**noise, **more})


def recipe_file(folder: Path, privacy: Privacy, *baselines: str) -> Path:
    path = tiny_recipe.write_recipe(
        folder,
        privacy=privacy.model_dump(exclude_none=True),
        federation={"rounds": 2, "targets": "raw"},
    )
    path.write_text(f"baselines = {[*baselines]}\n{path.read_text()}")
    return path


def anna(path: Path) -> ClientSide:
    """A trainer that was started anew."""
    return client_sides(path, path.parent / "sides")["anna"]


@lru_cache(maxsize=1)  # hundreds of questions to one client
def shared(side: ClientSide) -> tuple[str, Adapter]:
    return agreement_digest(side.recipe), side._first()


def fit(side: ClientSide, run: str, method: str = "fedavg", round: int = 1) -> Answer:
    agreed, first = shared(side)
    began = BEGAN.setdefault(run, len(BEGAN))  # a client goes on to newer runs only
    request = Request("fit", run, agreed, "anna", method, round, first, began=began)
    return side._answer(request, f"{round:032x}")[0]


def test_a_hostile_server_gets_what_the_limit_allows_under_however_many_names(tmp_path):
    """No more after hundreds of runs, of other methods, deleted folders, restarts, other data."""
    path = recipe_file(tmp_path, privacy_of(limit=spent(ALLOWED)), "fedprox")
    side = anna(path)
    answers = [fit(side, "first"), fit(side, "first", "fedprox")]
    shutil.rmtree(side.folder / "runs")
    side = anna(path)
    answers.append(fit(side, "second"))
    answers += [fit(side, f"run-{k}") for k in range(800)]
    tiny_recipe.write_rows(tmp_path / "data" / "anna.jsonl", tiny_recipe.client_rows(0, 20))
    side = anna(path)
    answers += [fit(side, f"new-{k}", method) for k in range(5) for method in ("fedavg", "fedprox")]
    told = [answer for answer in answers if not answer.refused]
    assert told == answers[:ALLOWED]
    assert all(answer.change for answer in told)
    words = answers[-1].refused
    assert f"privacy.lifetime_epsilon = {spent(3):g}: 3 release(s)" in words
    assert f"spent {spent(3):.4g} for life, and one more would make it {spent(4):.4g}" in words
    assert len(side.ledger.releases()) == ALLOWED


def test_an_owner_who_raises_the_limit_lets_it_go_on(tmp_path):
    path = recipe_file(tmp_path, privacy_of(limit=spent(1)))
    side = anna(path)
    assert not fit(side, "one").refused
    assert fit(side, "two").refused
    path.write_text(path.read_text().replace(f"= {spent(1)}", f"= {spent(2)}"))
    assert not fit(anna(path), "two").refused


def test_an_answer_that_was_given_before_is_given_again_and_counts_once(tmp_path):
    path = recipe_file(tmp_path, privacy_of(limit=spent(1)))
    first = fit(anna(path), "run")
    again = fit(anna(path), "run")
    assert not first.refused
    assert not again.refused
    assert all(bool((first.change[key] == again.change[key]).all()) for key in first.change)
    assert [each.round for each in anna(path).ledger.releases()] == [1]


def test_a_release_is_entered_before_its_answer_is_written(tmp_path, monkeypatch):
    """A client that dies in between has counted one too many, and never one too few."""
    side = anna(recipe_file(tmp_path, privacy_of()))
    entered: list[int] = []
    write = files.write_bytes

    def watch(path: Path, data: bytes, private: bool = False) -> None:
        if path.name.startswith("answer-"):
            entered.append(len(side.ledger.releases()))
        write(path, data, private)

    monkeypatch.setattr(files, "write_bytes", watch)
    assert not fit(side, "run").refused
    assert not fit(side, "run", round=2).refused
    assert entered == [1, 2]


def test_a_refused_release_is_not_entered_and_nothing_is_trained(tmp_path, monkeypatch):
    side = anna(recipe_file(tmp_path, privacy_of(limit=spent(1))))
    assert not fit(side, "run").refused
    monkeypatch.setattr("fedsdr.federation.in_process.InProcessEngine.run_round", None)
    assert "lifetime_epsilon" in fit(side, "run", round=2).refused
    assert "lifetime_epsilon" in fit(side, "other").refused
    assert len(side.ledger.releases()) == 1
    assert [path.name for path in (side.folder / "runs").iterdir()] == ["run"]


def test_each_release_names_its_data_and_they_add_up_all_the_same(tmp_path):
    """One record more is no fresh budget: the others were told of before."""
    path = recipe_file(tmp_path, privacy_of(limit=spent(2)))
    assert not fit(anna(path), "one").refused
    tiny_recipe.write_rows(tmp_path / "data" / "anna.jsonl", tiny_recipe.client_rows(0, 7))
    side = anna(path)
    assert not fit(side, "two").refused
    assert fit(side, "three").refused
    one, two = side.ledger.releases()
    assert (one.run, two.run) == ("one", "two")
    assert one.data != two.data
    assert side.ledger.path.stat().st_mode & 0o777 == 0o600


def test_without_differential_privacy_there_is_no_ledger(tmp_path):
    side = anna(recipe_file(tmp_path, Privacy()))
    assert not fit(side, "run").refused
    assert not side.ledger.path.exists()


# A client that dies, and a ledger that was cut


class Killed(BaseException):
    """The process ends here."""


def kill_at(monkeypatch: pytest.MonkeyPatch, event: int) -> None:
    """Die before or after the nth write or append, counted from 0."""
    left = [event]

    def watch(real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> None:
            step()
            real(*args, **options)
            step()

        return watched

    def step() -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    for name in ("write_bytes", "append_json_lines"):
        monkeypatch.setattr(files, name, watch(getattr(files, name)))


def question(side: ClientSide, round: int, counted: int) -> bytes:
    agreed, first = agreement_digest(side.recipe), side._first()
    journal = side.journal.name
    place = ("fit", "run", agreed, "anna", "fedsdr", round, first, counted)
    return seal_payload(encode_message(Request(*place, began=1, journal=journal)), UNSIGNED)


def test_a_fit_that_was_killed_anywhere_is_one_release_and_the_same_bytes(tmp_path, monkeypatch):
    """And one that ended is asked again for nothing."""
    path = recipe_file(tmp_path, privacy_of(limit=spent(2)))
    path.write_text(path.read_text().replace('targets = "raw"', 'targets = "two_stream"'))
    begun = anna(path)
    monkeypatch.setattr("secrets.token_hex", lambda count: "ab" * count)

    def client(folder: Path) -> ClientSide:
        keys = ClientKeys(UNSIGNED, UNSIGNED)
        methods = resolve_methods(begun.recipe)
        return ClientSide(begun.loaded, methods, "anna", folder, keys, silent_reporter())

    first, whole = client(tmp_path / "first"), tmp_path / "whole"
    questions = [question(first, round, counted=round - 1) for round in (1, 2)]
    answers = [first(questions[0])]
    shutil.copytree(first.folder, whole)
    answers.append(client(whole)(questions[1]))
    assert not any(decode_answer(open_sealed(each, UNSIGNED)).refused for each in answers)
    for event in range(100):
        folder = tmp_path / f"killed-{event}"
        shutil.copytree(first.folder, folder)
        with monkeypatch.context() as patch:
            kill_at(patch, event)
            try:
                answer = client(folder)(questions[1])
            except Killed:
                answer = b""
        assert answer in (b"", answers[1])
        again = client(folder)
        assert again(questions[1]) == answers[1]
        assert again(questions[1]) == answers[1]
        assert [each.round for each in again.ledger.releases()] == [1, 2]
        if answer:
            break
    assert 8 < event < 99


def with_two_releases(folder: Path) -> tuple[Path, ClientSide]:
    path = recipe_file(folder, privacy_of())
    side = anna(path)
    assert not fit(side, "run").refused
    assert not fit(side, "run", round=2).refused
    return path, side


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (lambda lines: lines[:1], r"1 line\(s\), and the client's journal knows of 2"),
        (lambda lines: [], r"0 line\(s\), and the client's journal knows of 2"),
        (lambda lines: [lines[0], lines[1].replace("4.0", "40.0")], "not those that the client's"),
        (lambda lines: [lines[0].replace("4.0", "40.0"), lines[1]], "not those that the client's"),
    ],
)
def test_a_ledger_that_lacks_what_the_journal_knows_releases_nothing(tmp_path, cut, why):
    path, side = with_two_releases(tmp_path)
    good = side.ledger.path.read_text()
    side.ledger.path.write_text("".join(cut(good.splitlines(keepends=True))))
    assert "ledger of releases cannot be read" in fit(side, "next").refused
    with pytest.raises(UserError, match=why):
        anna(path)
    side.ledger.path.write_text(good)
    assert not fit(anna(path), "next").refused
    assert len(side.ledger.releases()) == 3


def test_a_ledger_that_was_deleted_is_missed(tmp_path):
    path, side = with_two_releases(tmp_path)
    side.audit.refused("a stranger's")
    side.ledger.path.unlink()
    with pytest.raises(UserError, match="put a good copy in its place"):
        anna(path)
    folder = tmp_path / "site"
    shutil.copytree(side.folder, folder / "private")
    shutil.copy(path, folder / "recipe.toml")
    with pytest.raises(UserError, match="the client's journal knows of 2"):
        client_status(folder)


def test_a_copy_of_an_older_ledger_in_a_new_folder_is_known_from_the_first_start(tmp_path):
    path, side = with_two_releases(tmp_path)
    (side.folder / "journal.json").unlink()
    side = anna(path)
    side.ledger.path.write_text(side.ledger.path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match="the client's journal knows of 2"):
        anna(path)


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path):
    """Its lines name no question, and the journal no ledger."""
    path, side = with_two_releases(tmp_path)
    rows = files.read_json_lines(side.ledger.path)
    files.write_json_lines(
        side.ledger.path, [{k: v for k, v in row.items() if k != "question"} for row in rows]
    )
    book = files.read_json(side.journal.path)
    del book["ledger"]
    files.write_json(side.journal.path, book)
    assert not fit(anna(path), "next").refused
    assert len(side.ledger.releases()) == 3


# The ledger by itself


def charged(folder: Path, own: Privacy, *releases: Privacy) -> Ledger:
    ledger = Ledger(folder, own)
    for k, release in enumerate(releases or (own,)):
        ledger.charge(release, UpdateKey(f"run-{k}", "fedavg", 1, "q"), "d")
    return ledger


@pytest.mark.parametrize("mode", ["local", "central"])
def test_what_is_spent_is_the_composition_of_all_releases(tmp_path, mode):
    own = privacy_of(mode)
    ledger = charged(tmp_path, own, *[own] * 5)
    assert ledger.check(own) == spent(6, mode == "local")
    assert f"epsilon {spent(5, mode == 'local'):.4g} at delta 1e-05" in ledger.describe()
    assert "5 release(s) (no privacy.lifetime_epsilon)" in ledger.describe()


def test_noise_that_anybody_can_take_off_counts_as_none(tmp_path):
    assert "epsilon inf" in charged(tmp_path, privacy_of(noise_seed=1)).describe()


def test_a_method_has_neither_a_limit_nor_a_delta_of_its_own(tmp_path):
    """They are those of the client's recipe."""
    own = privacy_of(limit=spent(1))
    generous = privacy_of(limit=1e6, delta=0.9)
    ledger = charged(tmp_path, own, generous)
    with pytest.raises(BudgetError, match="lifetime_epsilon"):
        ledger.charge(generous, UpdateKey("run", "fedavg", 2, "q"), "d")


KEY = UpdateKey("r", "m", 1, "q")
LINE = (
    '{"number": 2, "time": 1.0, "run": "r", "method": "m", "round": 1, "mode": "local", '
    '"noise_multiplier": 4.0, "data": "d"}\n'
)


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: "",  # with a line that does not follow
        lambda text: text * 2,
        lambda text: text.replace("{", "", 1),
        lambda text: text.replace('"noise_multiplier":4.0', '"noise_multiplier":-4.0').replace(
            '"noise_multiplier": 4.0', '"noise_multiplier": -4.0'
        ),
        lambda text: text.replace("local", "none"),
        lambda text: "7\n" + text,
        lambda text: text.replace("number", "numbers"),
        lambda text: "\0" * len(text) + "\n",
    ],
)
def test_a_ledger_that_was_changed_releases_nothing(tmp_path, broken):
    own = privacy_of()
    ledger = charged(tmp_path, own)
    ledger.path.write_text(broken(ledger.path.read_text()) + LINE)
    before = ledger.path.read_bytes()
    for act in (lambda: ledger.check(own), lambda: ledger.charge(own, KEY, "d")):
        with pytest.raises(BudgetError, match="nothing is released until") as caught:
            act()
        assert str(tmp_path) not in str(caught.value), "it goes to the server"
    with pytest.raises(UserError, match="put a good copy in its place") as caught:
        ledger.describe()
    assert str(ledger.path) in str(caught.value)
    assert ledger.path.read_bytes() == before


def test_a_line_that_does_not_follow_is_named_as_such(tmp_path):
    (tmp_path / LEDGER).write_text(LINE)
    with pytest.raises(UserError, match=r"\(lines are missing or stand in another order\)"):
        Ledger(tmp_path, privacy_of()).releases()


def test_a_release_is_logged_with_what_is_spent_by_then(tmp_path, caplog):
    caplog.set_level("INFO")
    side = anna(recipe_file(tmp_path, privacy_of()))
    assert not fit(side, "run").refused
    assert f"privacy: {side.ledger.describe()}" in caplog.messages


def test_a_trainer_with_a_broken_ledger_does_not_start(tmp_path):
    path = recipe_file(tmp_path, privacy_of())
    side = anna(path)
    (side.folder / LEDGER).write_text("{}\n")
    assert "ledger of releases cannot be read" in fit(side, "run").refused
    with pytest.raises(UserError, match=LEDGER):
        anna(path)


# The limit in recipes


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "none"},
        {"mode": "local", "noise_multiplier": 0.0},
        {"mode": "central", "noise_seed": 3},
        {"mode": "local", "lifetime_epsilon": 0.0},
    ],
)
def test_a_limit_on_nothing_is_refused(tmp_path, wrong):
    path = tiny_recipe.write_recipe(tmp_path, privacy={"lifetime_epsilon": 3.0, **wrong})
    with pytest.raises(UserError, match="lifetime_epsilon"):
        load_recipe(path)


def test_the_limit_is_the_clients_own_and_of_no_method(tmp_path):
    path = recipe_file(tmp_path, privacy_of(limit=3.0))
    mine = load_recipe(path)
    assert agreement_digest(mine) == agreement_digest(
        override_recipe(mine, {"privacy.lifetime_epsilon": None})
    )
    generous = {"variants": {"v": {"privacy": {"lifetime_epsilon": 9.0}}}, "baselines": ["v"]}
    with pytest.raises(UserError, match=r"variants.v changes privacy.lifetime_epsilon"):
        client_sides_of(path, generous)


def client_sides_of(path: Path, changes: dict[str, Any]) -> None:
    from fedsdr.workflows.prepare import prepare_client

    prepare_client(override_recipe(load_recipe(path), changes), "anna")


def test_init_writes_a_limit_of_one_whole_run(tmp_path):
    """A second run takes the consent of each client's owner."""
    recipe = load_recipe(recipe_file(tmp_path, privacy_of(), "fedprox"))
    init_federation(recipe, tmp_path / "out", "localhost", 9000)
    written = load_recipe(tmp_path / "out" / "anna" / "recipe.toml").privacy
    planned = planned_epsilon(resolve_methods(recipe))
    assert planned <= written.lifetime_epsilon < planned + 0.01
    ledger = charged(tmp_path, written, *[written] * 4)  # rounds x methods
    with pytest.raises(BudgetError, match=r"4 release\(s\)"):
        ledger.check(written)
    assert load_recipe(tmp_path / "out" / "server" / "recipe.toml").privacy.lifetime_epsilon is None
    status = client_status(tmp_path / "out" / "anna")
    assert status == "nothing has left this client"


def test_init_writes_no_seed_of_noise_that_others_have_too(tmp_path):
    recipe = override_recipe(
        load_recipe(recipe_file(tmp_path, privacy_of())), {"privacy.noise_seed": 1}
    )
    with pytest.raises(UserError, match=r"privacy.noise_seed is for simulations"):
        init_federation(recipe, tmp_path / "out", "localhost", 9000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"privacy.lifetime_epsilon": 77.0}, 77.0),
        ({"privacy.mode": "none"}, None),
        ({"privacy.noise_multiplier": 0.0}, None),
        ({"federation.rounds": 0}, None),
    ],
)
def test_where_init_has_nothing_to_count_there_is_no_limit_but_a_given_one(
    tmp_path, changes, limit
):
    recipe = override_recipe(load_recipe(recipe_file(tmp_path, privacy_of())), changes)
    assert own_recipe(recipe, "anna").privacy.lifetime_epsilon == limit


def test_the_status_of_a_client_says_what_it_has_spent(tmp_path):
    path = recipe_file(tmp_path, privacy_of(limit=50.0))
    side = anna(path)
    fit(side, "run")
    for _ in range(4):
        side.audit.refused("a stranger's")
    side.audit.write_rest()
    folder = tmp_path / "site"
    shutil.copytree(side.folder, folder / "private")
    shutil.copy(path, folder / "recipe.toml")
    assert f"epsilon {spent(1):.4g} at delta 1e-05 spent for life, by 1 release(s) (limit 50)" in (
        client_status(folder)
    )
    assert "refused 4; the last one: a stranger's" in client_status(folder)
