"""What a checkpoint is evaluated on, and by which protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from vcrd_ray.config.base import CONFIDENCE, FREE_TO_CHANGE, THINKING, Location, Section, Thinking
from vcrd_ray.config.data import Prompts, SamplingSection, TinyPrompts
from vcrd_ray.config.instruct import InstructSection

MathSetName = Literal[
    "gsm8k",
    "math",
    "math500",
    "svamp",
    "minerva_math",
    "gaokao2023en",
    "olympiadbench",
    "amc23",
    "aime24",
    "sat_math",
    "cmath",
]
CodeSetName = Literal["humaneval", "mbpp"]
InstructSetName = Literal["alpaca_eval", "evol_instruct", "ultrafeedback", "mt_bench"]


class OwnMathSet(Section):
    """A JSON Lines file of questions with answers."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="What it is called in results")
    path: Path = Field(description="JSON Lines file")
    question_key: str = Field(default="question", description="Field with the question")
    answer_key: str = Field(
        default="answer", description="Field with the answer: a value or an expression, no solution"
    )


class MathSection(Section):
    """Mathematics by the protocol of Qwen2.5-Math's evaluation."""

    data: Path = Field(default=Path("data"), description="Folder with SET/test.jsonl for each set")
    sets: tuple[MathSetName, ...] = Field(
        default=(
            "gsm8k",
            "math",
            "svamp",
            "minerva_math",
            "gaokao2023en",
            "olympiadbench",
            "amc23",
            "aime24",
            "sat_math",
        ),
        description="Published sets",
    )
    own: tuple[OwnMathSet, ...] = Field(default=(), description="Sets of your own")
    limit: int | None = Field(default=None, ge=1, description="Only the first questions of each set, for a quick look")
    prompt: Literal["qwen25-math-cot", "qwen-boxed", "chat", "own"] = Field(
        default="qwen25-math-cot",
        description="Literal prompts of Qwen2.5-Math or Qwen2-Math; chat: the former's words through the model's template;"
        " own: the bare question as section prompt has it, as in training",
    )
    graders: tuple[Literal["qwen", "math_verify"], ...] = Field(
        default=("qwen", "math_verify"),
        min_length=1,
        description="Rules of grading; the first one's figure is the headline. qwen repeats the program that published scores"
        " were made with, which takes 18 for 1800 and [0,1) for (0,1); math_verify compares mathematics",
    )
    mode: Literal["strict", "reference"] = Field(
        default="strict",
        description="reference: as published scores were graded, bugs included; strict: no answer never counts as right",
    )
    samples: int = Field(default=1, ge=1, description="Responses to each question")
    ks: tuple[int, ...] = Field(default=(1,), min_length=1, description="k of pass@k, with several samples")
    sampling: SamplingSection = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=2048)
    workers: int = Field(default=1, ge=1, description="Grading processes")
    timeout_s: float = Field(default=3.0, gt=0, description="Processor time of grading one answer")
    memory_mib: int = Field(default=2048, ge=64, description="Memory that a grading process may take beyond its start")

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        _check_samples("math", self.samples, self.ks, self.sampling)
        names = [*self.sets, *(own.name for own in self.own)]
        if len(set(names)) < len(names):
            raise ValueError(f"two sets have one name ({', '.join(names)}): name own sets otherwise")
        return self


class CodeSection(Section):
    """Programs, judged by EvalPlus inside a sandbox."""

    data: Path = Field(
        default=Path("data"),
        description="Folder with humaneval_plus/HumanEvalPlus.jsonl.gz and mbpp_plus/MbppPlus.jsonl.gz",
    )
    sets: tuple[CodeSetName, ...] = Field(default=("humaneval", "mbpp"), description="Each with its plus")
    limit: int | None = Field(default=None, ge=1, description="Only the first tasks of each set, for a quick look")
    prompt: Literal["chat", "base"] = Field(
        default="chat", description="Instruction through the template, or completion"
    )
    samples: int = Field(default=1, ge=1, description="Programs for each task")
    ks: tuple[int, ...] = Field(default=(1,), min_length=1, description="k of pass@k, with several samples")
    sampling: SamplingSection = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=1024)
    workers: int = Field(default=1, ge=1, description="Sandboxes at a time")
    sanitize_s: float = Field(default=60, gt=0, description="Longest time to pick the program out of one response")
    max_chars: int = Field(default=65536, ge=1, description="Longest response that a program is picked out of")
    cache: Path = Field(default=Path("~/.cache/vcrd_ray/evalplus"), description="Expected outputs, computed once")
    allow_network: bool = Field(
        default=False,
        description="Run programs of the model without namespaces where this machine has none: they can reach the network",
    )

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        _check_samples("code", self.samples, self.ks, self.sampling)
        return self


def _check_samples(name: str, samples: int, ks: tuple[int, ...], sampling: SamplingSection) -> None:
    if not all(1 <= k <= samples for k in ks):
        raise ValueError(f"{name}.ks {list(ks)} of {samples} samples: take k from 1 to samples")
    if samples > 1 and sampling.temperature == 0:
        raise ValueError(
            f"{name}.samples {samples} at temperature 0 are the same response: set {name}.sampling.temperature"
        )


class OwnInstructSet(Section):
    """A file of instructions with answers to compare with."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="What it is called in results")
    path: Path = Field(description="JSON Lines file or JSON array")
    prompt_key: str = Field(default="prompt", description="Field with the instruction")
    reference_key: str = Field(default="reference", description="Field with the answer to compare with")


class InstructSuiteSection(InstructSection):
    """Instruction following: win rates against reference answers, by a judge behind an OpenAI-compatible endpoint."""

    data: Path = Field(
        default=Path("data"),
        description="Folder with alpaca_eval/, evol_instruct/ and ultrafeedback/distillm2_eval.jsonl, and with MT-Bench's"
        " mt_bench/question.jsonl and judge_prompts.jsonl",
    )
    sets: tuple[InstructSetName, ...] = Field(
        default=("alpaca_eval", "evol_instruct", "ultrafeedback"), description="Published sets"
    )
    own: tuple[OwnInstructSet, ...] = Field(default=(), description="Sets of your own")
    rival: Path | None = Field(
        default=None,
        description="Answers that those to mt_bench are compared with, because it has none: a model_answer.jsonl of another"
        " evaluation, or one of FastChat's",
    )
    limit: int | None = Field(
        default=None, ge=1, description="Only the first instructions of each set, for a quick look"
    )
    sampling: SamplingSection = SamplingSection(temperature=0.8, top_p=0.95, max_new_tokens=1024)

    @model_validator(mode="after")
    def _mt_bench_has_a_rival(self) -> Self:
        if ("mt_bench" in self.sets) != (self.rival is not None):
            raise ValueError(
                "set mt_bench needs a rival to compare with, and nothing else does: give instruct.rival and mt_bench in"
                " instruct.sets together, or neither"
            )
        return self


class HarnessSection(Section):
    """Tasks of lm-evaluation-harness, which asks and grades them (--backend lm-eval)."""

    tasks: tuple[Annotated[str, Field(pattern=r"^[\w.+-]+$")], ...] = Field(
        default=(), description="Tasks and groups by the harness's names, beside those of --suites"
    )
    include_path: Path | None = Field(default=None, description="Folder with task files of your own")
    num_fewshot: int | None = Field(default=None, ge=0, description="Shots of every task; none: each task's own")
    chat: bool = Field(default=True, description="Ask through the model's chat template; off: as base models are asked")
    batch_size: int = Field(default=8, ge=1, description="Requests of one forward pass")
    limit: int | None = Field(default=None, ge=1, description="Only the first questions of each task, for a quick look")
    bootstrap_iters: int = Field(default=1000, ge=0, description="Resamples of the harness's own standard errors")


class EvaluateSection(Section):
    """pass@1 on held-out problems of your own, and benchmark suites."""

    model: Location | None = Field(default=None, description="Checkpoint to evaluate; none: the student's path")
    prompts: Prompts = TinyPrompts(seed=7, count=1000)
    sampling: SamplingSection = SamplingSection(temperature=0.0, top_p=1.0)
    batch_size: int = Field(default=250, ge=1, description="Prompts in one generate call")
    replicas: int = Field(json_schema_extra=FREE_TO_CHANGE, default=1, ge=1, description="Engine actors")
    confidence: float = Field(default=CONFIDENCE, gt=0, lt=1, description="Level of the Wilson interval")
    thinking: Thinking = Field(
        default=THINKING,
        description="What opens and closes a reasoning model's thinking, which is taken off before an answer is read;"
        " none: whole responses are read, as published scores of other models were",
    )
    math: MathSection = MathSection()
    code: CodeSection = CodeSection()
    instruct: InstructSuiteSection = InstructSuiteSection()
    lm_eval: HarnessSection = HarnessSection()

    @field_validator("thinking", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        # Of a list the command line reads null as its one member.
        return None if value == [None] else value

    @field_validator("thinking")
    @classmethod
    def _marks_differ(cls, value: Thinking) -> Thinking:
        if value is not None and value[0] == value[1]:
            raise ValueError(f"thinking {list(value)} opens and closes alike: name two marks, or null for none")
        return value
