"""Whether two models mean the same by their token ids. Knows tokenizers only, no weights."""

from __future__ import annotations

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError
from vcrd_ray.models.checkpoint_files import special_ids

_CURES = {
    "teacher": "use a teacher of the student's tokenizer family: its distribution is over the same ids",
    "judge": ("use a judge of the policy's tokenizer family, or the weighting `teacher_prob`, which needs no judge"),
}


def check_same_vocabulary(
    student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, *, role: str, occurring: Collection[int] = ()
) -> None:
    """Check that every id that can occur means the same to both: teacher and judge are fed the student's ids unchanged.

    Ids of text must be equal one by one. Special tokens may differ, as families name their unused ones differently, but for
    those in `occurring`, such as the markers of turns that the template writes; ends of sequence are alike by any name.

    Args:
        role: whose tokenizer `other` is: teacher or judge.

    Raises:
        ModelError: some ids differ; says how many, shows one and names the cure.
    """
    ignored = (special_ids(student) | special_ids(other)) - set(occurring)
    if student.eos_token_id == other.eos_token_id:
        ignored |= {student.eos_token_id}
    ours, theirs = (
        {i: token for token, i in tokenizer.get_vocab().items() if i not in ignored} for tokenizer in (student, other)
    )
    differing = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    if not differing:
        return
    example = differing[0]
    mine, yours = (repr(of[example]) if example in of else "absent" for of in (ours, theirs))
    raise ModelError(
        f"the {role}'s tokenizer does not fit the student's: {len(differing)} token ids differ, for example id {example} is"
        f" {mine} for the student and {yours} for the {role}; {_CURES[role]}"
    )
