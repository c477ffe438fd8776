"""The tokenizer of the demo model: byte-level BPE with Qwen's chat template.

Every word of the training captions is one token, and so is every integer from 0 to 1000, so that a `bbox`
takes four number tokens. Other text is split into smaller pieces, down to bytes.
"""

import random
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.training.captions import structured
from models.training.scenes import LETTERS, random_boxed, random_single
from models.training.vocabulary import COLOUR_WORDS, SHAPE_WORDS, STRANGE
from models.training.wording import plain

VOCABULARY = 2304
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}"
    "{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# separates words, numbers, punctuation and white space
SPLIT = r"#[0-9A-Fa-f]{6}| ?\p{L}+|\p{N}{1,4}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def corpus(count: int) -> list[str]:
    """Captions that the vocabulary is fitted on."""
    rng = random.Random("tokenizer")
    texts = []
    for _ in range(count):
        kind = rng.random()
        draw = random_single if kind < 0.7 else random_boxed
        scene = draw(rng, 128, 128, 0.5)
        texts.append((structured if draw is random_boxed or kind < 0.1 else plain)(rng, scene))
    return [text for text in texts if not text.startswith(STRANGE)]  # these words must not become tokens


def words() -> list[str]:
    """Words that must be one token each: numbers, letters, colours and shapes, also after a space."""
    named = [w for group in (*COLOUR_WORDS.values(), *SHAPE_WORDS.values()) for w in group if w.isalpha()]
    bare = [*LETTERS, *dict.fromkeys(named)]
    return [str(n) for n in range(1001)] + bare + [" " + w for w in bare] + [w.capitalize() for w in bare]


def build() -> PreTrainedTokenizerFast:
    """Fit the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(s, special=True) for s in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = corpus(12000) + words() * 40 + ["user\n", "assistant\n"] * 2000
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    fast.chat_template = CHAT_TEMPLATE
    return fast


def fit(work: Path) -> None:
    """Write the tokenizer to the work directory unless it is there."""
    if not (work / "tokenizer" / "tokenizer.json").exists():
        build().save_pretrained(work / "tokenizer")


@lru_cache(maxsize=4)
def opened(folder: Path) -> PreTrainedTokenizerFast:
    """The saved tokenizer."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[list[int]]:
    """Token ids of prompts inside the chat template, as in the server."""
    head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    encoded = tokenizer([head + prompt + tail for prompt in prompts], add_special_tokens=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
