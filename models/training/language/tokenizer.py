"""The tokenizer of the demo model: whole words without case, with Qwen's chat template (without thinking).

Every word of the training captions is one token, and so is every integer from 0 to 1000, so that a `bbox`
takes four number tokens. Other words are spelled: a token for each byte, the first of them a different one.
Case and white space are ignored, so that each word is learnt once.
"""

import random
from collections import Counter
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.training.language import tables, vocabulary
from models.training.language.captions import structured
from models.training.pairs import random_boxed_pair
from models.training.scenes import LETTERS, random_boxed, random_single
from models.training.words import random_boxed_word

MOST = 2304  # tokens
CONTINUED = "##"  # marks a byte within a word
UNKNOWN_WORD = "QJXZ"  # stands for the words that scenes show, which must not become tokens
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}"
    "{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
# separates words, numbers and punctuation
SPLIT = r"#[0-9A-Fa-f]{6}|\p{L}+|\p{N}{1,4}|[^\s\p{L}\p{N}#]+|#"


def corpus(count: int) -> list[str]:
    """Structured captions, for their words and runs of punctuation."""
    rng = random.Random("tokenizer")
    scenes = [random_single(rng, 128, 128, 0.5) for _ in range(count)]
    scenes += [random_boxed(rng, 128, 128, 0.5) for _ in range(count)]
    scenes += [random_boxed_word(rng, 128, 128, UNKNOWN_WORD) for _ in range(count)]
    scenes += [random_boxed_pair(rng) for _ in range(count)]
    return [structured(rng, scene) for scene in scenes]


def separator() -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def words() -> list[str]:
    """What is one token each: numbers, letters, words and runs of punctuation."""
    separate = separator()

    def pieces(texts: list[str]) -> Counter[str]:
        return Counter(piece for text in texts for piece, _ in separate.pre_tokenize_str(text.lower()))

    named = pieces([*tables.texts(), "user assistant"])
    strange = {word.lower() for word in (*vocabulary.STRANGE, UNKNOWN_WORD)}
    often = {piece for piece, count in pieces(corpus(600)).items() if count > 1} - strange
    known = [str(n) for n in range(1001)] + [letter.lower() for letter in LETTERS]
    return list(dict.fromkeys([*known, *sorted(often | set(named))]))


def build() -> PreTrainedTokenizerFast:
    """Build the tokenizer. A word that is not in the vocabulary is spelled, as there are no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*SPECIAL, *alphabet, *(CONTINUED + byte for byte in alphabet), *words()])
    assert len(tokens) <= MOST
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[],
            continuing_subword_prefix=CONTINUED,
            ignore_merges=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = separator()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
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
    head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    encoded = tokenizer([head + prompt + tail for prompt in prompts], add_special_tokens=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
