"""When teacher and judge may read the student's token ids."""

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from vcrd_ray.errors import ModelError
from vcrd_ray.models.vocabulary import check_same_vocabulary

WORDS = ("one", "two", "three", "four")


def tokenizer(
    words: tuple[str, ...] = WORDS, *, eos: str = "<eos>", added: tuple[AddedToken, ...] = ()
) -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate((eos, *words))}
    backend = Tokenizer(models.WordLevel(vocab=vocab, unk_token=eos))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    made.add_tokens(list(added))
    return made


def test_equal_vocabularies_fit() -> None:
    check_same_vocabulary(tokenizer(), tokenizer(), role="judge")


def test_special_tokens_may_be_named_differently() -> None:
    check_same_vocabulary(tokenizer(eos="<eos>"), tokenizer(eos="<|end|>"), role="judge")


@pytest.mark.parametrize("special", [True, False])
def test_tokens_added_to_one_side_do_not_count(special: bool) -> None:
    more = tokenizer(added=(AddedToken("<tool>", special=special),))
    assert "<tool>" in more.get_vocab()
    check_same_vocabulary(more, tokenizer(), role="judge")
    check_same_vocabulary(tokenizer(), more, role="judge")


def test_swapped_words_are_refused_with_number_example_and_cure() -> None:
    swapped = tokenizer(("one", "three", "two", "four"))
    with pytest.raises(ModelError) as caught:
        check_same_vocabulary(tokenizer(), swapped, role="judge")
    message = str(caught.value)
    assert "2 token ids differ" in message
    assert "id 2 is 'two' for the student and 'three' for the judge" in message
    assert "`teacher_prob`" in message
    assert "a judge of the policy's tokenizer family" in message


def test_a_word_that_only_one_side_has_is_refused() -> None:
    with pytest.raises(ModelError, match=r"1 token ids differ.*'four' for the student and absent for"):
        check_same_vocabulary(tokenizer(), tokenizer(WORDS[:3]), role="judge")
    with pytest.raises(ModelError, match=r"1 token ids differ.*absent for the student and 'four' for"):
        check_same_vocabulary(tokenizer(WORDS[:3]), tokenizer(), role="judge")


@pytest.mark.parametrize("role", ["teacher", "judge"])
def test_the_role_is_named_with_its_cure(role: str) -> None:
    with pytest.raises(ModelError, match=rf"the {role}'s tokenizer .* for the {role}; use a {role} of the"):
        check_same_vocabulary(tokenizer(), tokenizer(WORDS[::-1]), role=role)


def test_special_tokens_that_occur_must_mean_the_same() -> None:
    student, teacher = (
        tokenizer(added=tuple(AddedToken(name, special=True) for name in names))
        for names in (("<|user|>", "<|assistant|>"), ("<|assistant|>", "<|user|>"))
    )
    check_same_vocabulary(student, teacher, role="teacher")
    with pytest.raises(
        ModelError, match=r"1 token ids differ, for example id 5 is '<\|user\|>' for the student and '<\|ass"
    ):
        check_same_vocabulary(student, teacher, role="teacher", occurring={0, 1, 5})


def test_another_end_of_sequence_of_the_same_ids_fits() -> None:
    extra = (AddedToken("<|end|>", special=True),)
    student, teacher = tokenizer(added=extra), tokenizer(added=extra)
    teacher.eos_token = "<|end|>"
    check_same_vocabulary(student, teacher, role="teacher", occurring={0, 5})
