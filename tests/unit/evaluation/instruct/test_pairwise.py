"""Pairs, orders and rulings."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.unit.evaluation.instruct.chat_server import chat_server, completion
from tests.unit.evaluation.instruct.endpoints import JumpingClock, section
from tests.unit.evaluation.instruct.instruct_data import instruct_file
from vcrd_ray.config.instruct import Parsing
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.instruct.client import ChatClient
from vcrd_ray.evaluation.instruct.figures import figures
from vcrd_ray.evaluation.instruct.pairwise import drawn_order, judge_pairs, pair_up, score_of
from vcrd_ray.evaluation.instruct.prompts import JudgePrompt, Messages, Order, Pair
from vcrd_ray.evaluation.instruct.replies import Refusal, Reply, ReplyCache
from vcrd_ray.evaluation.instruct.sets import InstructItem, published_set, read_items

_PROMPT = JudgePrompt(name="short", system=None, template="{question}|{answer_a}|{answer_b}")


class ScriptedJudge:
    """Answers by the prompt's text, last prompt first."""

    def __init__(self, script: Mapping[str, str | Refusal]) -> None:
        self._script = script
        self.asked: list[str] = []

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply | Refusal]]:
        for index, (message,) in reversed(list(enumerate(prompts))):
            self.asked.append(message.content)
            said = self._script[message.content]
            if isinstance(said, Refusal):
                yield index, said
            else:
                cut = "length" if said.endswith("...") else "stop"
                yield (
                    index,
                    Reply(text=said, finish_reason=cut, served_model=None, prompt_tokens=1, completion_tokens=1),
                )


def _item(id: str, *, turns: int = 1, category: str | None = None, gold: tuple[str, ...] = ()) -> InstructItem:
    return InstructItem(
        set="made",
        id=id,
        turns=(f"q{id}",) * turns,
        reference=(f"r{id}",) * turns,
        reference_by="r",
        gold=gold,
        category=category,
    )


def _pair(id: str, *, same: bool = False) -> Pair:
    return Pair(id=id, category=None, turns=(f"q{id}",), answers=("m",), references=("m" if same else "r",))


def test_answers_are_paired_with_references_by_id() -> None:
    pairs = pair_up([_item("1"), _item("2")], {"2": ("m2",), "1": ("m1",)})
    assert [(pair.answers, pair.references) for pair in pairs] == [(("m1",), ("r1",)), (("m2",), ("r2",))]


def test_another_model_may_take_the_reference_s_place() -> None:
    (pair,) = pair_up([_item("1")], {"1": ("m",)}, against={"1": ("other",)})
    assert pair.references == ("other",)


def test_thinking_is_taken_off_what_is_compared_with() -> None:
    (pair,) = pair_up([_item("1")], {"1": ("m",)}, against={"1": ("<think>hm</think>other",)})
    assert pair.references == ("other",)
    with pytest.raises(DataError, match="to compare with to 1 is thinking that does not end"):
        pair_up([_item("1")], {"1": ("m",)}, against={"1": ("<think>hm",)})


@pytest.mark.parametrize("parsing", ["reference", "strict"])
@pytest.mark.parametrize(("said", "verdict"), [("<think>[[A]]?</think>[[B]]", "B"), ("<think>[[A]]", "unparsable")])
def test_a_verdict_is_not_what_a_judge_thought(parsing: Parsing, said: str, verdict: str) -> None:
    judge = ScriptedJudge({"q1|m|r": said})
    (record,) = judge_pairs([_pair("1")], judge, order="model_first", parsing=parsing, prompt_of=lambda _: _PROMPT)
    assert [(ruling.verdict, ruling.reply) for ruling in record.rulings] == [(verdict, said)]


def test_gold_is_shown_in_mathematics_reasoning_and_code_only() -> None:
    items = [_item(c, category=c, gold=("4",)) for c in ("math", "reasoning", "coding", "roleplay")]
    pairs = pair_up(items, {item.id: ("m",) for item in items})
    assert [pair.gold for pair in pairs] == [("4",), ("4",), ("4",), ()]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"1": ("m",)}, "answers of the model are missing to 1 of 2 questions: 2"),
        ({"1": ("m",), "2": ("m",), "3": ("m",)}, "answers of the model are to questions that are not asked: 3"),
        ({"1": ("m", "m"), "2": ("m",)}, "1: 2 answers to 1 turns"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answers: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pair_up([_item("1"), _item("2")], answers)


def test_a_set_without_references_needs_answers_to_compare_with() -> None:
    items = read_items(instruct_file("mt_bench/question.jsonl"), published_set("mt_bench"))
    answers = {item.id: ("a", "b") for item in items}
    with pytest.raises(DataError, match=r"compare with are missing to 80 of 80 questions: 81, 82, 83, 84, 85, \.\.\."):
        pair_up(items, answers)
    assert len(pair_up(items, answers, against=answers)) == 80


def test_both_orders_are_asked_and_scored_for_the_model() -> None:
    judge = ScriptedJudge({"q1|m|r": "[[A]]", "q1|r|m": "[[B]]", "q2|m|r": "[[B]]", "q2|r|m": "[[C]]"})
    records = judge_pairs([_pair("1"), _pair("2")], judge, order="both", parsing="strict", prompt_of=lambda _: _PROMPT)
    assert [record.id for record in records] == ["1", "2"]
    assert [[(r.order, r.verdict, r.score) for r in record.rulings] for record in records] == [
        [("model_first", "A", 1.0), ("reference_first", "B", 1.0)],
        [("model_first", "B", 0.0), ("reference_first", "C", 0.5)],
    ]
    assert [r.reply for r in records[1].rulings] == ["[[B]]", "[[C]]"]


@pytest.mark.parametrize(("order", "asked"), [("model_first", "q1|m|r"), ("reference_first", "q1|r|m")])
def test_one_order_is_asked_alone(order: Order, asked: str) -> None:
    judge = ScriptedJudge({asked: "[[A]]"})
    (record,) = judge_pairs([_pair("1")], judge, order=order, parsing="strict", prompt_of=lambda _: _PROMPT)
    assert judge.asked == [asked] and record.rulings[0].order == order


def test_equal_answers_tie_without_a_call() -> None:
    judge = ScriptedJudge({})
    (record,) = judge_pairs([_pair("1", same=True)], judge, order="both", parsing="reference")
    assert judge.asked == [] and record.identical
    assert [(r.score, r.reply) for r in record.rulings] == [(0.5, None), (0.5, None)]


def test_unparsable_replies_and_refusals_have_no_score_and_are_kept() -> None:
    judge = ScriptedJudge({"q1|m|r": "I cannot say.", "q1|r|m": Refusal(status=400, message="too long")})
    (record,) = judge_pairs([_pair("1")], judge, order="both", parsing="reference", prompt_of=lambda _: _PROMPT)
    said, refused = record.rulings
    assert (said.verdict, said.score, said.reply, said.refusal) == ("unparsable", None, "I cannot say.", None)
    assert (refused.verdict, refused.score, refused.reply, refused.refusal) == ("unparsable", None, None, "too long")


@pytest.mark.parametrize(("parsing", "verdict"), [("strict", "unparsable"), ("reference", "A")])
def test_a_reply_at_the_length_limit_is_parsed_as_asked(parsing: Parsing, verdict: str) -> None:
    judge = ScriptedJudge({"q1|m|r": "[[A]] would mean ..."})
    (record,) = judge_pairs(
        [_pair("1")],
        judge,
        order="model_first",
        parsing=parsing,
        prompt_of=lambda _: _PROMPT,
    )
    assert (record.rulings[0].verdict, record.rulings[0].finish_reason) == (verdict, "length")


def test_two_pairs_of_one_id_are_refused() -> None:
    with pytest.raises(DataError, match="1 ids stand in several pairs"):
        judge_pairs([_pair("1"), _pair("1")], ScriptedJudge({}), order="both", parsing="strict")


def test_scores_are_the_model_s_wherever_it_stands() -> None:
    assert [score_of(v, "model_first") for v in ("A", "B", "C", "unparsable")] == [1.0, 0.0, 0.5, None]
    assert [score_of(v, "reference_first") for v in ("A", "B", "C", "unparsable")] == [0.0, 1.0, 0.5, None]


def test_drawn_orders_depend_on_the_text_alone_and_are_even() -> None:
    orders = [drawn_order(f"question {n}") for n in range(2000)]
    assert orders == [drawn_order(f"question {n}") for n in range(2000)]
    # Five standard deviations of a fair coin.
    assert abs(orders.count("model_first") - 1000) < 5 * 500**0.5
    judge = ScriptedJudge({"q1|m|r": "[[A]]", "q1|r|m": "[[B]]"})
    (record,) = judge_pairs([_pair("1")], judge, order="drawn", parsing="strict", prompt_of=lambda _: _PROMPT)
    assert [r.order for r in record.rulings] == [drawn_order("q1")] and record.rulings[0].score == 1.0


def test_records_come_back_from_what_they_are_written_as() -> None:
    judge = ScriptedJudge({"q1|m|r": "[[A]] “\n", "q1|r|m": Refusal(status=400, message="no")})
    (record,) = judge_pairs([_pair("1")], judge, order="both", parsing="strict", prompt_of=lambda _: _PROMPT)
    assert type(record).model_validate_json(record.model_dump_json()) == record


def test_a_whole_comparison_runs_through_an_endpoint(tmp_path: Path) -> None:
    # Always the longer answer, where there is one; a third of the questions get no verdict.
    def by_length(text: str) -> str:
        first, second = text.split("Answer]\n")[1].split("\n[The")[0], text.split("Answer]\n\n")[1].split("\n")[1]
        if "mute" in text:
            return "No comment."
        return "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"

    items = [_item(name) for name in ("a", "b", "mute")]
    answers = {"a": ("longer than it",), "b": ("x",), "mute": ("any",)}
    with (
        chat_server(lambda asked, before: completion(by_length(asked.text))) as server,
        ReplyCache(tmp_path / "c") as cache,
        ChatClient(section(server.base_url), cache, clock=JumpingClock()) as client,
    ):
        records = judge_pairs(pair_up(items, answers), client, order="both", parsing="reference")
        again = judge_pairs(pair_up(items, answers), client, order="both", parsing="strict")
    assert records == again and len(server.asked) == 6 and client.usage.from_cache == 6
    result = figures(records, scheme="mean", confidence=0.95)
    assert (result.win_rate.value, result.unparsable, result.position_bias) == (0.5, 2, 0.0)
