"""Talking to a run's models: streams, turns, a full context, commands, pipes, Ctrl-C."""

import io

import pytest
from typer.testing import CliRunner

from fedsdr.chat import terminal
from fedsdr.chat.conversation import ChatOptions, Conversation, new_text
from fedsdr.chat.terminal import chat_loop, typed_lines
from fedsdr.cli.main import app
from fedsdr.core.errors import UserError
from fedsdr.core.progress import silent_reporter
from fedsdr.data.records import Turn
from fedsdr.data.template import ChatFormat
from fedsdr.generation.batched import generate_batch
from fedsdr.generation.sampling import Job
from fedsdr.generation.streaming import TokenStream
from fedsdr.recipe.load import load_recipe
from fedsdr.workflows.finished import Models, open_finished
from fedsdr.workflows.run import run_recipe
from support import tiny_models, tiny_recipe
from support.written_tokenizers import byte_level


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("chat")
    recipe = load_recipe(
        tiny_recipe.write_recipe(place, local={"rectify_lr": 0.3, "smooth_lr": 0.3}),
        ['baselines=["fedavg"]'],
    )
    run_recipe(recipe, place / "out", silent_reporter())
    return place / "out"


@pytest.fixture(scope="module")
def opened(folder):
    return Models(open_finished(folder), silent_reporter())


def invoke(folder, *words, said=""):
    return CliRunner().invoke(app, ["chat", str(folder), *words], input=said)


def whole(opened, *turns, limit=8):
    """The answer computed in one go, by the generator that rewriting uses."""
    chat = opened.base.chat
    roles = ("user", "assistant")
    prompt = chat.prompt_ids(tuple(Turn(roles[i % 2], text) for i, text in enumerate(turns)))
    return chat.text(generate_batch(opened.base.model, [Job(prompt, limit)], chat.ends)[0])


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_stream_that_goes_on_is_a_sequence_computed_anew(family):
    model = tiny_models.make(family)
    stream = TokenStream(model)
    prompt = [7, 8, 9, 10]
    for more in ([11, 12], [13], [14, 15, 16]):
        expected = generate_batch(model, [Job(prompt, 6)], stop=-1)[0]
        assert list(stream.generate(prompt, 6, stop=-1)) == expected
        prompt = [*prompt, *expected, *more]
    assert list(stream.generate([9, 9], 5, -1)) == generate_batch(model, [Job([9, 9], 5)], -1)[0]


def test_what_the_cache_holds_is_not_fed_again(monkeypatch):
    model = tiny_models.make("llama")
    stream, fed = TokenStream(model), []
    advance = stream._advance
    monkeypatch.setattr(stream, "_advance", lambda ids: fed.append(len(ids)) or advance(ids))
    first = list(stream.generate([7, 8, 9], 3, -1))
    list(stream.generate([7, 8, 9, *first, 10], 2, -1))
    assert fed == [3, 1, 1, 2, 1]  # the last answer's last token was never fed


def test_two_turns_and_another_model_answer_as_computed_in_one_go(opened):
    chat = Conversation(opened, "global", ChatOptions(limit=8), print)
    first = "".join(chat.ask("red green"))
    assert first == whole(opened, "red green")
    assert "".join(chat.ask("dog")) == (second := whole(opened, "red green", first, "dog"))
    chat.use("client:ben")
    third = "".join(chat.ask("cat"))
    assert third == whole(opened, "red green", first, "dog", second, "cat")
    chat.use("base")
    chat.reset()
    again = "".join(chat.ask("red green"))
    assert again == whole(opened, "red green")
    assert again != first  # the two models differ


def test_the_oldest_exchanges_make_room_and_it_is_said(opened):
    notices: list[str] = []
    chat = Conversation(opened, "global", ChatOptions(limit=80), notices.append)
    answers = ["".join(chat.ask(f"red {word}")) for word in ("one", "two", "three", "cat")]
    assert all(answers)
    assert notices
    assert "oldest exchange(s) were dropped" in notices[0]
    with pytest.raises(UserError, match="context is 96: say it in fewer words"):
        list(chat.ask("red " * 200))
    kept = [turn.text for turn in chat._turns]
    assert kept[-2:] == ["red cat", answers[-1]]  # nothing of the long one is left


def test_sampling_repeats_by_seed(opened):
    def sample(seed):
        return "".join(
            Conversation(opened, "global", ChatOptions("", 1.5, 20, seed), print).ask("red cat")
        )

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_a_character_of_several_tokens_comes_whole():
    chat = ChatFormat(byte_level())
    ids, said, pieces = [], "", []
    for token in chat.response_ids("né ok")[:-1]:
        ids.append(token)
        pieces.append(new_text(chat, ids, said))
        said += pieces[-1]
    assert pieces == ["n", "", "é", "", " o", "k"]


# At the command line


def test_a_pipe_gets_answers_and_nothing_else(folder, opened):
    opened.use("global")
    first = whole(opened, "red green", limit=6)
    second = whole(opened, "red green", first, "dog", limit=6)
    opened.use("client:anna")
    third = whole(opened, "cat bird", limit=6)
    said = "red green\n\ndog\n/model client:anna\n/reset\ncat bird\n/nonsense\n/quit\nred\n"
    result = invoke(folder, "--max-tokens", "6", said=said)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{first}\n{second}\n{third}\n"
    assert "now talking to client:anna" in result.stderr
    assert "'/nonsense' is not a command" in result.stderr


def test_an_empty_answer_is_a_blank_line_and_a_notice(folder, monkeypatch):
    answers = iter([[], [7, 8]])
    monkeypatch.setattr(TokenStream, "generate", lambda *given: iter(next(answers)))
    result = invoke(folder, said="red green\ndog\n")
    first, second = result.stdout.splitlines()
    assert (first, bool(second)) == ("", True)
    assert result.stderr.count("(an empty answer: global ended its turn without a word)") == 1


def test_a_client_can_be_named_and_the_base_too(folder, opened):
    for words, name in ((("--client", "ben"), "client:ben"), (("--model", "base"), "base")):
        opened.use(name)
        result = invoke(folder, *words, "--max-tokens", "5", said="red green\n")
        assert result.stdout == whole(opened, "red green", limit=5) + "\n"


def test_a_question_without_room_keeps_the_order_of_answers(folder):
    result = invoke(folder, "--max-tokens", "5", said="red " * 200 + "\nred\n")
    assert result.stdout.startswith("\n")
    assert result.stdout.count("\n") == 2
    assert "say it in fewer words" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--client", "zoe"), "no model 'client:zoe'"),
        (("--model", "fedprox"), "no model 'fedprox': choose from base, fedavg, "),
        (("--client", "ben", "--model", "base"), "give one of them"),
        (("--temperature", "-1"), "temperature"),
        (("--max-tokens", "0"), "max-tokens"),
    ],
)
def test_a_mistake_is_status_2(folder, words, said):
    result = invoke(folder, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


class Interrupting(io.StringIO):
    """Standard output at which Ctrl-C is pressed once, after a piece."""

    pressed = False

    def flush(self):
        if not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt


def test_ctrl_c_stops_the_answer_and_not_the_chat(opened):
    chat = Conversation(opened, "global", ChatOptions(limit=8), print)
    out = Interrupting()
    chat_loop(chat, ["red green", "dog"], out, print, live=True)
    first, second = out.getvalue().splitlines()
    said = first.removesuffix(" [stopped]")
    assert said != first
    assert said == whole(opened, "red green").split()[0]
    assert second == whole(opened, "red green", said, "dog")


def test_ctrl_d_leaves_and_ctrl_c_at_the_prompt_does_not(monkeypatch, capsys):
    keys = iter([KeyboardInterrupt(), "hello", EOFError()])

    def press(prompt):
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    monkeypatch.setattr(terminal, "input", press, raising=False)
    assert list(typed_lines(lambda: "> ")) == ["hello"]
    assert "Ctrl-D leaves" in capsys.readouterr().out
