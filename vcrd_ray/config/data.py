"""Where problems come from, how the policy is asked and how responses are sampled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vcrd_ray.config.base import Location, Section

_SHARE_TOLERANCE = 1e-6


class TinyPrompts(Section):
    """Problems of the embedded tiny world, made on the fly."""

    type: Literal["tiny"] = "tiny"
    seed: int = Field(default=1, ge=0, description="Seed of the problem generator")
    start: int = Field(default=0, ge=0, description="Index of the first problem")
    count: int = Field(default=1000, ge=1, description="Number of problems")
    has_golds: ClassVar[bool] = True


class RowsSection(Section):
    """What all data sets made of rows share."""

    name: str | None = Field(default=None, min_length=1, description="Prefix of the ids; none: after file or data set")
    question_key: str = Field(default="question", description="Key of the problem text")
    answer_key: str | None = Field(default="answer", description="Key of the gold answer or solution; none: no answers")
    messages_key: str | None = Field(
        default=None,
        description="Key of a chat, a list of {role, content} or {from, value}: its first user turn is the question, the"
        " assistant turn after it the solution, a system turn before it part of the prompt; instead of question_key and"
        " answer_key",
    )
    start: int = Field(default=0, ge=0, description="Rows to pass over")
    count: int | None = Field(default=None, ge=1, description="Rows to read; none: all")
    shuffle_seed: int | None = Field(
        default=None, ge=0, description="Shuffle the rows with this seed before start and count; none: as they stand"
    )
    max_reject_share: float = Field(
        default=0.01, ge=0, le=1, description="Stop when more than this share of the rows is malformed"
    )

    @property
    def has_golds(self) -> bool:
        """Whether rows bring what responses can be graded by."""
        return self.answer_key is not None

    @model_validator(mode="after")
    def _one_mapping(self) -> Self:
        if self.messages_key is not None:
            fields = type(self).model_fields
            if self.question_key != fields["question_key"].default:
                raise ValueError("question_key has no effect beside messages_key: remove one of the two")
            if self.answer_key not in (None, fields["answer_key"].default):
                raise ValueError(
                    "answer_key has no effect beside messages_key: remove one of the two (null: take no solution)"
                )
        return self


class JsonlPrompts(RowsSection):
    """Problems read from a file of JSON rows: JSON Lines or one array, plain or gzipped."""

    type: Literal["jsonl"] = "jsonl"
    path: Path = Field(description="File with one JSON object a line, or one array of objects")


class ParquetPrompts(RowsSection):
    """Problems read from a Parquet file, or from all *.parquet files of a folder in the order of their names."""

    type: Literal["parquet"] = "parquet"
    path: Path = Field(description="Parquet file, or folder of such files")


class HfPrompts(RowsSection):
    """Problems read with the library `datasets`, from the Hugging Face hub or from a folder that save_to_disk wrote."""

    type: Literal["hf"] = "hf"
    path: Location = Field(description="Data set of the hub (owner/name), or a folder that save_to_disk wrote")
    subset: str | None = Field(default=None, description="Configuration of a data set of the hub")
    split: str | None = Field(default=None, description="Split; needed wherever there are several")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a data set of the hub")


Source = Annotated[TinyPrompts | JsonlPrompts | ParquetPrompts | HfPrompts, Field(discriminator="type")]


class MixSource(Section):
    """One part of a mixture."""

    share: float = Field(gt=0, le=1, description="Share of the mixture's prompts")
    prompts: Source = Field(description="Where they come from; its start, count and shuffle_seed are applied first")


class MixPrompts(Section):
    """A sample of several sources without replacement, shuffled; no question stands in it twice."""

    type: Literal["mix"] = "mix"
    sources: tuple[MixSource, ...] = Field(min_length=2, description="Sources and their shares, which sum to 1")
    count: int = Field(ge=1, description="Prompts in all")
    shuffle_seed: int = Field(default=0, ge=0, description="Seed of the sample and of the order")

    @property
    def has_golds(self) -> bool:
        """Whether rows of some source bring what responses can be graded by."""
        return any(source.prompts.has_golds for source in self.sources)

    def counts(self) -> list[int]:
        """Prompts of each source: its share of the count, rounded by largest remainder so that they sum to the count."""
        exact = [source.share * self.count for source in self.sources]
        # A share such as 0.29 of 100 is a hair below 29.
        whole = [math.floor(amount + _SHARE_TOLERANCE) for amount in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
        for index in by_remainder[: self.count - sum(whole)]:
            whole[index] += 1
        return whole

    @model_validator(mode="after")
    def _shares_make_a_whole(self) -> Self:
        total = sum(source.share for source in self.sources)
        if abs(total - 1) > _SHARE_TOLERANCE:
            raise ValueError(f"the shares of sources sum to {total:g}; make them sum to 1")
        for index, number in enumerate(self.counts()):
            if number == 0:
                raise ValueError(
                    f"sources.{index}: share {self.sources[index].share:g} of count {self.count} is no prompt at all;"
                    " raise one of the two, or remove the source"
                )
        return self


Prompts = Annotated[TinyPrompts | JsonlPrompts | ParquetPrompts | HfPrompts | MixPrompts, Field(discriminator="type")]


class PromptSection(Section):
    """How a question becomes what the policy reads. Judges are shown the bare question."""

    template: Literal["chat", "raw"] = Field(
        default="chat",
        description="chat: the tokenizer's chat template with the answer's turn opened; raw: the text as it stands, with"
        " the special tokens that the tokenizer puts around any text",
    )
    system: str | None = Field(default=None, description="System message (chat only); none: the template's own, if any")
    prefix: str = Field(default="", description="Text put directly before each question")
    suffix: str = Field(default="", description="Text put directly behind each question")

    @model_validator(mode="after")
    def _system_needs_chat(self) -> Self:
        if self.template == "raw" and self.system is not None:
            raise ValueError("template raw has no system message: put the text in prefix, or use template chat")
        return self


class SamplingSection(Section):
    """How responses are sampled."""

    temperature: float = Field(default=0.8, ge=0, description="0 is greedy")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus")
    max_new_tokens: int = Field(default=1024, ge=1, description="Longest response")
