"""Make the built-in model's tokenizer, chat template and config (no weights): recipes/builtin/base/.

    python recipes/builtin/make_tokenizer.py [FOLDER]

Deterministic: the same files, byte for byte, under the versions of constraints.txt.
The weights are made by `slimrl sft` from here (recipes/builtin/1-know.yaml, then 2-imitate.yaml).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2Tokenizer

from slimrl.config.task import ArithmeticConfig
from slimrl.tasks import arithmetic
from slimrl.tasks.styles import STYLES

VOCABULARY = 640
PROBLEMS = 5000
CONTEXT = 512
PAD, END = "<|pad|>", "<|end|>"
SPECIAL = [PAD, "<|system|>", "<|user|>", "<|assistant|>", END]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def corpus() -> Iterator[str]:
    """Questions of the built-in task and every way in which its demonstrators answer them."""
    config = ArithmeticConfig()
    texts = arithmetic.demonstrators(config, STYLES["hashes"])
    for problem in arithmetic.load(config, seed=0).train[:PROBLEMS]:
        yield problem.question
        yield from (text(problem, 0) for text in texts.values())


def main(folder: Path) -> None:
    # Qwen2Tokenizer sets its own normalisation and splitting (a number is its digits) whatever tokenizer.json says,
    # and AutoTokenizer takes it for every Qwen2 model; so the vocabulary is trained under exactly that.
    empty = Qwen2Tokenizer(unk_token=None, eos_token=END, pad_token=PAD).backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    fast = Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=SPECIAL[1:4],
        model_max_length=CONTEXT,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder, save_jinja_files=False)
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=len(fast),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=fast.pad_token_id,
        eos_token_id=fast.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "base")
