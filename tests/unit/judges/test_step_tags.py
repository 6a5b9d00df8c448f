"""Judges of whole steps on small random checkpoints, against plain transformers models used as their authors use them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.unit.judges.checkpoints import ROUNDING
from vcrd_ray.errors import ModelError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.step_tags import StepTagsJudge, load_step_tags_judge
from vcrd_ray.judges.steps import step_of_tokens
from vcrd_ray.judges.verdict_formats import MathShepherdFormat, RlhflowFormat
from vcrd_ray.types import JudgeRequest, StepSolution

WEIGHTS = "model.safetensors"
TEMPLATES = ("math_shepherd", "rlhflow")
LLAMA_CHAT = (
    "{{ '<|begin|>' }}{% for m in messages %}"
    "<|head|>{{ m.role }}<|end_head|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|end_head|>\n\n{% endif %}"
)
LLAMA_MARKS = ("<|begin|>", "<|head|>", "<|end_head|>", "<|eot|>")


def byte_tokenizer(*merges: tuple[str, str], special: tuple[str, ...] = ("<eos>",)) -> PreTrainedTokenizerFast:
    """One token a byte, and some merged ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0])


def policy_tokenizer() -> PreTrainedTokenizerFast:
    """With tokens for '.\\n', '.\\n\\n' and '\\nS'."""
    return byte_tokenizer((".", "Ċ"), (".Ċ", "Ċ"), ("Ċ", "S"))


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """As sentencepiece writes it: spaces in front of words, unknown characters in bytes, <s> first."""
    characters = [chr(c) for c in range(33, 127)]
    merges = [("▁", "+"), ("▁", "-"), ("▁", "к"), ("▁к", "и"), ("к", "и")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *characters, "к", "и"]
    vocab = {token: i for i, token in enumerate([*tokens, *(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_prefix_space=None
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(("Ċ", "Ċ"), special=("<eos>", *LLAMA_MARKS))
    tokenizer.chat_template = LLAMA_CHAT
    return tokenizer


def write_checkpoint(directory: Path, template: str, *, seed: int = 0) -> Path:
    """A judge whose logits vary by about 1. Mistral's window is shorter than the inputs."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    if template == "math_shepherd":
        tokenizer = mistral_tokenizer()
        MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), sliding_window=16, **sizes)).save_pretrained(
            directory
        )
    else:
        tokenizer = llama_tokenizer()
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(path: Path, template: Any, **changes: Any) -> StepTagsJudge:
    options = {"good": "+", "bad": "-", "step_tag": "ки", "max_batch_tokens": 4096, "dtype": "float32", **changes}
    return load_step_tags_judge(path, template=template, policy_tokenizer=policy_tokenizer(), device="cpu", **options)


@cache
def plain(directory: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()
    return model, AutoTokenizer.from_pretrained(directory)


def authors_logits(directory: Path, template: str, solution: StepSolution) -> list[float]:
    """ln(p_good / p_bad) of each step, as the two model cards compute p_good."""
    model, tokenizer = plain(directory)
    logits = []
    if template == "math_shepherd":
        candidate_tokens = tokenizer.encode("+ -")[1:]
        step_tag_id = tokenizer.encode("ки")[-1]
        lines = "\n".join(f"Step {i}: {step} ки" for i, step in enumerate(solution.steps, start=1))
        input_id = torch.tensor([tokenizer.encode(f"{solution.question} {lines}")])
        with torch.no_grad():
            scores = model(input_id).logits[:, :, candidate_tokens].softmax(-1)[:, :, 0]
        return torch.logit(scores[input_id == step_tag_id].double()).tolist()
    plus, minus = tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]
    conversation = []
    for k, step in enumerate(solution.steps):
        content = solution.question + " " + step if k == 0 else step
        conversation += [{"content": content, "role": "user"}, {"content": "+", "role": "assistant"}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        input_ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            score = model(input_ids).logits[:, -3, [plus, minus]].softmax(-1)[0, 0]
        logits.append(torch.logit(score.double()).item())
    return logits


SOLUTIONS = [
    StepSolution(question="1 + 1 - 1?", steps=("1 + 1 = 2", "2 - 1 = 1", "so 1")),
    StepSolution(question="x", steps=()),
    StepSolution(question="How many é?", steps=("one",)),
    StepSolution(question="Ann?", steps=("She has 2 - 1.", "It's 1")),
]


def request_of(*texts: str) -> JudgeRequest:
    """Responses of the policy; every third proposal differs."""
    tokenizer = policy_tokenizer()
    responses = [np.asarray(tokenizer.encode(text), dtype=np.int32) for text in texts]
    proposals = [np.where(np.arange(len(r)) % 3, r, 1 + (r + 7) % 250).astype(np.int32) for r in responses]
    return JudgeRequest(
        questions=tuple(f"Question {i}?" for i in range(len(texts))),
        responses=tuple(responses),
        proposals=tuple(proposals),
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {template: write_checkpoint(tmp_path_factory.mktemp(template), template) for template in TEMPLATES}


@pytest.fixture(scope="module")
def judges(paths: dict[str, Path]) -> dict[str, StepTagsJudge]:
    return {template: load(paths[template], template) for template in TEMPLATES}


# --- the authors' scores --------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_tokens", [1, 150, 4096])
@pytest.mark.parametrize("template", TEMPLATES)
def test_step_scores_are_the_authors(paths: dict[str, Path], template: str, max_batch_tokens: int) -> None:
    scores = load(paths[template], template, max_batch_tokens=max_batch_tokens).score_steps(SOLUTIONS)
    spread = []
    for solution, found in zip(SOLUTIONS, scores, strict=True):
        assert len(found) == len(solution.steps)
        if solution.steps:
            expected = authors_logits(paths[template], template, solution)
            assert np.abs(found - expected).max() < ROUNDING
            spread += expected
    assert np.std(spread) > 0.3


def test_math_shepherd_does_not_number_numbered_steps(judges: dict[str, StepTagsJudge]) -> None:
    plain_steps = StepSolution(question="Q", steps=("one", "two"))
    numbered = StepSolution(question="Q", steps=("Step 1: one", "Step 2: two"))
    found = judges["math_shepherd"].score_steps([plain_steps, numbered])
    assert np.abs(found[0] - found[1]).max() < 1e-6


def test_math_shepherd_is_not_misled_by_tags_in_the_text(
    paths: dict[str, Path], judges: dict[str, StepTagsJudge]
) -> None:
    model, tokenizer = plain(paths["math_shepherd"])
    solution = StepSolution(question="What is ки ?", steps=("a ки b", "c"))
    text = "What is ки ? Step 1: a ки b ки"
    for found, part in zip(
        judges["math_shepherd"].score_steps([solution])[0], (text, f"{text}\nStep 2: c ки"), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(part)])).logits[0, -1]
        good, bad = tokenizer.encode("+ -")[1:]
        assert abs(found - (logits[good] - logits[bad]).item()) < ROUNDING


def test_rlhflow_is_read_right_where_the_chat_does_not_tokenise_in_pieces(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "math_shepherd")
    tokenizer = mistral_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(path)
    found = load(path, "rlhflow").score_steps(SOLUTIONS[:1])[0]
    assert np.abs(found - authors_logits(path, "rlhflow", SOLUTIONS[0])).max() < ROUNDING


# --- scores of tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_token_has_the_score_of_its_step(
    paths: dict[str, Path], judges: dict[str, StepTagsJudge], template: str
) -> None:
    # Tokens such as '.\n\n' and '\nS' belong to the step that they end.
    cases = [
        ("One.\n\nTwo = 2\nSo 3.\n<eos>", ("One.", "Two = 2", "So 3."), (4, 8, 5)),
        ("one line", ("one line",), (8,)),
        ("\n\n a\n\nb ", ("a", "b"), (6, 2)),
        ("é\nü<eos>", ("é", "ü"), (3, 3)),
    ]
    request = request_of(*(text for text, _, _ in cases))
    expected = []
    for question, (_, steps, counts) in zip(request.questions, cases, strict=True):
        solution = StepSolution(question=question, steps=steps)
        expected.append(np.repeat(authors_logits(paths[template], template, solution), counts))
    scores = judges[template].score(request)
    assert np.abs(scores.trunk_logit - np.concatenate(expected)).max() < ROUNDING
    same = np.concatenate(request.responses) == np.concatenate(request.proposals)
    assert 0 < same.sum() < len(same)
    assert np.array_equal(scores.branch_logit[same], scores.trunk_logit[same])
    assert np.isnan(scores.branch_logit[~same]).all()


@pytest.mark.parametrize("template", TEMPLATES)
def test_tokens_do_not_depend_on_the_batch(
    paths: dict[str, Path], judges: dict[str, StepTagsJudge], template: str
) -> None:
    request = request_of("One.\n\nTwo = 2\nSo 3.\n<eos>", "one line", "a", "é\nü")
    together = judges[template].score(request)
    alone = load(paths[template], template, max_batch_tokens=1).score(request)
    assert np.abs(together.trunk_logit - alone.trunk_logit).max() < ROUNDING
    assert together.num_tokens == alone.num_tokens > 4 * 20


def test_responses_without_text_have_no_score(judges: dict[str, StepTagsJudge]) -> None:
    scores = judges["rlhflow"].score(request_of("<eos>", "", " \n\n", "a"))
    assert np.isnan(scores.trunk_logit).tolist() == [True] * 4 + [False]


def test_an_empty_request_has_empty_scores(judges: dict[str, StepTagsJudge]) -> None:
    as_judge: Judge = judges["rlhflow"]
    nothing = JudgeRequest(questions=(), responses=(), proposals=())
    scores = as_judge.score(nothing)
    assert scores.trunk_logit.dtype == scores.branch_logit.dtype == np.float32
    assert (len(scores.trunk_logit), len(scores.branch_logit), scores.num_tokens) == (0, 0, 0)
    assert as_judge.self_check(nothing, num_branches=8, seed=0) == 0.0


# --- steps of tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "steps", "index"),
    [
        (["a", "\n", "b"], ("a", "b"), [0, 0, 1]),
        (["a", ".\n\n", "b", "\n"], ("a.", "b"), [0, 0, 1, 1]),
        (["a", ".\n", "\n", "\n", "b"], ("a.", "b"), [0, 0, 0, 0, 1]),
        (["\n", " ", "\n", "a", "\n", "b"], ("a", "b"), [0, 0, 0, 0, 0, 1]),
        (["a", "\nS", "o"], ("a", "So"), [0, 0, 1]),
        (["a", "\n", "b", "\n", "<eos>"], ("a", "b"), [0, 0, 1, 1, 1]),
        (["a", "\n", "b", "<eos>"], ("a", "b"), [0, 0, 1, 1]),
        (["a", "\n", " ", "\n", "b"], ("a", "b"), [0, 0, 0, 0, 1]),
        (["<eos>"], (), [-1]),
        (["\n", " "], (), [-1, -1]),
        ([], (), []),
    ],
)
def test_step_of_tokens(tokens: list[str], steps: tuple[str, ...], index: list[int]) -> None:
    tokenizer = policy_tokenizer()
    ids = np.asarray([tokenizer.encode(token)[0] for token in tokens], dtype=np.int32)
    assert [tokenizer.decode([i]) for i in ids] == tokens
    found_steps, found = step_of_tokens(ids, tokenizer)
    assert found_steps == steps
    assert found.dtype == np.int32
    assert found.tolist() == index


def test_characters_of_several_tokens_are_whole_in_their_step() -> None:
    ids = np.asarray(policy_tokenizer().encode("é\n√2"), dtype=np.int32)
    assert len(ids) == 7
    steps, index = step_of_tokens(ids, policy_tokenizer())
    assert steps == ("é", "√2")
    assert index.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_steps_of_a_sentencepiece_tokenizer() -> None:
    tokenizer = mistral_tokenizer()
    ids = np.asarray(tokenizer.encode("a b\n\nc d"), dtype=np.int32)
    steps, index = step_of_tokens(ids, tokenizer)
    assert steps == ("a b", "c d")
    assert index.tolist() == [0] * (len(ids) - 3) + [1] * 3


# --- self-check -----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_self_check_of_a_sound_judge_is_rounding(judges: dict[str, StepTagsJudge], template: str) -> None:
    request = request_of("One\nTwo\nThree", "a\nbb\nccc")
    assert 0.0 < judges[template].self_check(request, num_branches=6, seed=0) < ROUNDING


def test_self_check_finds_a_model_that_sees_what_follows(paths: dict[str, Path]) -> None:
    judge = load(paths["rlhflow"], "rlhflow")
    layer = judge._model.backbone.layers[0]
    layer.register_forward_hook(lambda _, __, output: output + output.mean(1, keepdim=True))
    assert judge.self_check(request_of("One\nTwo\nThree"), num_branches=6, seed=0) > 1e-2


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(directory / WEIGHTS)
    edit(state)
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


def test_self_check_without_numbers_is_infinite(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "rlhflow")
    edit_weights(path, lambda state: state["lm_head.weight"].fill_(float("nan")))
    assert load(path, "rlhflow").self_check(request_of("a"), num_branches=4, seed=0) == float("inf")


# --- what it says of itself, and what cannot be used ----------------------------------------------


def test_profile_says_steps_of_its_own_text(paths: dict[str, Path], judges: dict[str, StepTagsJudge]) -> None:
    profiles = [judges[template].profile for template in TEMPLATES]
    assert {(p.family, p.scores) for p in profiles} == {("step_tags", "step")}
    turned = load(paths["rlhflow"], "rlhflow", good="-", bad="+").profile
    assert turned.fingerprint != profiles[1].fingerprint
    assert load(paths["rlhflow"], "rlhflow").profile == profiles[1]


@pytest.mark.parametrize("template", TEMPLATES)
def test_equal_verdicts_are_refused(paths: dict[str, Path], template: str) -> None:
    with pytest.raises(ModelError, match=r"the verdicts '\+' and '\+' are the same token"):
        load(paths[template], template, bad="+")


def test_verdicts_of_several_tokens_are_refused(paths: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"writes 'yes -' in 5 tokens, not one a verdict; set judge\.good"):
        load(paths["math_shepherd"], "math_shepherd", good="yes")


def test_unknown_verdict_is_refused(paths: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"does not know the verdict ''"):
        load(paths["rlhflow"], "rlhflow", bad="")


def test_tag_that_is_another_token_behind_a_step_is_refused() -> None:
    tokenizer = byte_tokenizer(("Ġ", "-"), ("#", "!"), ("Ġ", "#!"))
    reading = MathShepherdFormat(tokenizer, good="+", bad="-", step_tag="#!")
    with pytest.raises(ModelError, match=r"does not write the tag '#!' as one token behind each step"):
        reading.steps(SOLUTIONS[0])


def test_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "math_shepherd")
    with pytest.raises(ModelError, match=r"template rlhflow: its tokenizer has no chat template"):
        load(path, "rlhflow")


def test_verdict_that_merges_with_the_template_is_refused() -> None:
    tokenizer = byte_tokenizer(("+", "!"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}!{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    with pytest.raises(ModelError, match=r"template rlhflow: .* the verdict '\+' directly behind the prompt"):
        RlhflowFormat(tokenizer, good="+", bad="-").steps(SOLUTIONS[0])


def test_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "rlhflow")
    tokenizer = llama_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + LLAMA_CHAT
    tokenizer.save_pretrained(path)
    with pytest.raises(ModelError, match=r"template rlhflow: its chat template .* directly behind"):
        load(path, "rlhflow")


def test_solution_beyond_the_judges_positions_is_refused(judges: dict[str, StepTagsJudge]) -> None:
    with pytest.raises(ModelError, match=r"trajectory 1: \d+ tokens .* 256 positions; shorten"):
        judges["rlhflow"].score(request_of("a", "b" * 250))
