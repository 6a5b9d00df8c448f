"""The tiny world's Hugging Face tokenizer, trained on its own text. Knows nothing of models."""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.world import PRETRAIN_SEED, make_problem, sample_solution

PAD, BOS, EOS, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + message['content'] + '<eos>' -}}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '<|user|>' + message['content'] -}}"
    "{%- else -%}"
    "{{- raise_exception('roles are user and assistant') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

_CORPUS_SIZE = 2000
_VOCABULARY_LIMIT = 448


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text round-trips; a digit or a line break is always one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            # A word takes the space before it; signs and spaces stand alone.
            pre_tokenizers.Split(Regex(r" ?\p{L}+|#+|.|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_LIMIT,
        special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    config = WorldConfig()
    rng = random.Random(0)
    problems = (make_problem(config, seed=PRETRAIN_SEED, index=i) for i in range(_CORPUS_SIZE))
    corpus = (f"{p.question}\n{sample_solution(p, rng)}" for p in problems)
    backend.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        # Never needed, every byte is a token; unnamed, AutoTokenizer would add one that no embedding stands for.
        unk_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
