"""Which responses are kept."""

from __future__ import annotations

from vcrd_ray.selection.choose import Choice, Scored, choose


def responses(*rows: tuple[str, float | None, bool | None]) -> list[Scored]:
    return [
        Scored(prompt_id=p, sample=i, block=0, row=i, num_tokens=1, num_steps=1, correct=c, score=s)
        for i, (p, s, c) in enumerate(rows)
    ]


ROWS = responses(
    ("a", -2.0, True),
    ("b", -1.0, False),
    ("a", -1.0, False),
    ("b", -1.0, True),
    ("c", None, True),
    ("d", -5.0, None),
    ("d", None, True),
)


def chosen(
    rows: list[Scored] = ROWS, *, lower_is_better: bool = False, require_correct: bool = False, keep_share: float = 1.0
) -> Choice:
    return choose(rows, lower_is_better=lower_is_better, require_correct=require_correct, keep_share=keep_share)


def test_the_best_of_each_prompt_is_kept_and_of_equals_the_first() -> None:
    found = chosen()
    assert found.kept == (1, 2, 5)
    assert (found.num_prompts, found.num_unscored, found.num_incorrect) == (4, 1, 0)


def test_low_scores_win_where_low_is_good() -> None:
    assert chosen(lower_is_better=True).kept == (0, 1, 5)


def test_wrong_and_unchecked_responses_are_left_out_where_correct_ones_are_required() -> None:
    found = chosen(require_correct=True)
    assert found.kept == (0, 3)
    assert (found.num_unscored, found.num_incorrect) == (2, 0)
    assert chosen(ROWS[1:3], require_correct=True) == Choice(
        kept=(), num_prompts=2, num_incorrect=2, num_unscored=0, num_below_share=0
    )


def test_a_share_keeps_the_prompts_with_the_best_responses_rounded_up() -> None:
    assert chosen(keep_share=0.3).kept == (1,)
    found = chosen(keep_share=0.5)
    assert found.kept == (1, 2) and found.num_below_share == 1
    many = responses(*[(str(i), float(i), None) for i in range(100)])
    assert len(chosen(many, keep_share=0.07).kept) == 7
