from __future__ import annotations

from vcrd_ray.evaluation.math.prompts import prompt_text, turns
from vcrd_ray.evaluation.math.shots import MULTIPLE_CHOICE_SHOTS, Shot

SHOT = Shot(question="1+1?", answer="The answer is 2.")


def test_cot_prompt_asks_in_the_system_message() -> None:
    assert prompt_text("2+2?", style="qwen25-math-cot") == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_boxed_prompt_asks_after_the_question() -> None:
    assert prompt_text("2+2?", style="qwen-boxed") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n2+2?\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_shots_of_the_cot_prompt_share_the_users_turn() -> None:
    text = prompt_text("2+2?", style="qwen25-math-cot", shots=[SHOT])
    assert "<|im_start|>user\n1+1?\nThe answer is 2.\n\n2+2?<|im_end|>" in text


def test_shots_of_the_boxed_prompt_are_dialogues() -> None:
    text = prompt_text("2+2?", style="qwen-boxed", shots=[SHOT])
    assert text.count("<|im_start|>assistant\n") == 2
    assert "<|im_start|>assistant\nThe answer is 2.\n\n<|im_start|>system\n" in text


def test_turns_hold_what_the_text_holds() -> None:
    asked = turns("2+2?", style="qwen25-math-cot", shots=[SHOT])
    assert asked.user == "1+1?\nThe answer is 2.\n\n2+2?"
    assert asked.system in prompt_text("2+2?", style="qwen25-math-cot")


def test_braces_in_a_question_are_left_alone() -> None:
    assert r"\frac{1}{2} {input}" in prompt_text(r"\frac{1}{2} {input}", style="qwen25-math-cot")


def test_published_shots_end_with_their_letter() -> None:
    assert [shot.answer[-4:] for shot in MULTIPLE_CHOICE_SHOTS] == ["(D).", "(D).", "(D).", "(C).", "(C)."]
