"""When a judge may read a policy's token ids."""

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from vcrd_ray.errors import ModelError
from vcrd_ray.judges.compatibility import check_same_vocabulary

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
    check_same_vocabulary(tokenizer(), tokenizer())


def test_special_tokens_may_be_named_differently() -> None:
    check_same_vocabulary(tokenizer(eos="<eos>"), tokenizer(eos="<|end|>"))


@pytest.mark.parametrize("special", [True, False])
def test_tokens_added_to_one_side_do_not_count(special: bool) -> None:
    more = tokenizer(added=(AddedToken("<tool>", special=special),))
    assert "<tool>" in more.get_vocab()
    check_same_vocabulary(more, tokenizer())
    check_same_vocabulary(tokenizer(), more)


def test_swapped_words_are_refused_with_number_example_and_cure() -> None:
    swapped = tokenizer(("one", "three", "two", "four"))
    with pytest.raises(ModelError) as caught:
        check_same_vocabulary(tokenizer(), swapped)
    message = str(caught.value)
    assert "2 token ids differ" in message
    assert "id 2 is 'two' for the policy and 'three' for the judge" in message
    assert "`teacher_prob`" in message
    assert "a judge of the policy's tokenizer family" in message


def test_a_word_that_only_one_side_has_is_refused() -> None:
    with pytest.raises(ModelError, match=r"1 token ids differ.*'four' for the policy and absent for"):
        check_same_vocabulary(tokenizer(), tokenizer(WORDS[:3]))
    with pytest.raises(ModelError, match=r"1 token ids differ.*absent for the policy and 'four' for"):
        check_same_vocabulary(tokenizer(WORDS[:3]), tokenizer())
