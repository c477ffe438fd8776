"""The text model and its pre-training, which makes it understand captions before the DiTs are trained.

Linear maps from the taps at the last five tokens have to predict the shape or letter, the colour and the
place of each part, by one map for all parts, and the background. The DiTs then start from features that
represent all of these linearly.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3VLTextConfig, Qwen3VLTextModel

from engine.config.part_configs import PUBLISHED_TAPS
from models.training import progress
from models.training.language import tokenizer
from models.training.language.captions import structured
from models.training.language.sentences import plain
from models.training.pairs import random_boxed_pair, random_pair
from models.training.questions import MOST_PARTS, PART, WHOLE, answers
from models.training.scenes import Scene, random_boxed, random_single
from models.training.speed import compiled
from models.training.words import random_boxed_word, random_word

HIDDEN = 64
CONFIG = {
    "vocab_size": tokenizer.MOST,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 36,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
FEATURES = HIDDEN * len(PUBLISHED_TAPS)
# Only the tapped layers are trained. The others are identities (zero output projections), which takes a
# third of the work and is as good for such a small language.
STEPS = 4000
EASY = 0.4  # fraction of the steps with mostly plain prompts; later ones have mostly structured captions
LEARNING_RATE = 2e-3
SAVE_EVERY = 250
Contents = dict[str, float]
# content of a scene -> its share
MIXED: Contents = {"single": 0.35, "pair": 0.3, "word": 0.35}
BOXED: Contents = {"single": 0.6, "word": 0.4}
PAIRS: Contents = {"pair": 1.0}


@dataclass(frozen=True)
class Bucket:
    """Captions of one form up to a length in tokens: few lengths, because each one is compiled."""

    form: str
    contents: Contents
    longest: int
    count: int  # captions per batch
    shares: tuple[float, float]  # of the steps: the EASY ones, the others


BUCKETS = (
    Bucket("plain", MIXED, 32, 64, (0.65, 0.45)),
    Bucket("structured", BOXED, 74, 40, (0.25, 0.30)),
    Bucket("structured", PAIRS, 106, 28, (0.10, 0.25)),
)


@dataclass(frozen=True)
class Caption:
    """A prompt and the scene it describes."""

    text: str
    scene: Scene


def random_scene(
    rng: random.Random, width: int, height: int, content: str, boxed: bool, letters: float
) -> Scene:
    """A random scene of one element, a pair or a word; `letters` is the share of letters among those."""
    if content == "pair":
        return (random_boxed_pair if boxed else random_pair)(rng)
    if content == "word":
        return (random_boxed_word if boxed else random_word)(rng, width, height)
    return (random_boxed if boxed else random_single)(rng, width, height, letters)


def random_caption(
    rng: random.Random, width: int, height: int, form: str, letters: float, contents: Contents | None = None
) -> Caption:
    """A scene with a prompt of one form, plain or structured; of one element unless `contents` are given."""
    (content,) = rng.choices(list(contents), list(contents.values())) if contents else ("single",)
    boxed = form == "structured" and (content == "pair" or rng.random() < 0.8)
    scene = random_scene(rng, width, height, content, boxed, letters)
    return Caption((plain if form == "plain" else structured)(rng, scene), scene)


def build() -> Qwen3VLTextModel:
    """The text model with its initial weights; layers that are not tapped are identities."""
    torch.manual_seed(1)
    model = Qwen3VLTextModel(Qwen3VLTextConfig(**CONFIG))
    with torch.no_grad():
        model.embed_tokens.weight.normal_(0, 1)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "layers" in name:
                small = 0.3 if "o_proj" in name or "down_proj" in name else 1.0
                parameter.normal_(0, small * parameter.shape[1] ** -0.5)
        for index, layer in enumerate(model.layers):
            if index not in PUBLISHED_TAPS:
                layer.requires_grad_(False)
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    return model


@torch.no_grad()
def embed_numbers(model: Qwen3VLTextModel, tok: PreTrainedTokenizerFast) -> None:
    """Initialise the embeddings of 0..1000 to vary smoothly, so that few examples teach them all."""
    half = HIDDEN // 4
    frequencies = torch.logspace(0, 2, half) * torch.pi / 1000
    for number in range(1001):
        (index,) = tok(str(number), add_special_tokens=False)["input_ids"]
        angles = number * frequencies
        model.embed_tokens.weight[index, : 2 * half] = torch.cat((angles.sin(), angles.cos())) * 1.4


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x (B, H, L, K); cos and sin (L, K)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def layer_forward(layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply one causal decoder layer to (B, L, D); trains twice as fast as the one in transformers."""
    attention, mlp = layer.self_attn, layer.mlp
    batch, length, _ = x.shape
    dim = attention.head_dim

    def norm(y: Tensor, weight: Tensor) -> Tensor:
        return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * weight

    a = norm(x, layer.input_layernorm.weight)
    q = norm(attention.q_proj(a).view(batch, length, -1, dim), attention.q_norm.weight).transpose(1, 2)
    k = norm(attention.k_proj(a).view(batch, length, 1, dim), attention.k_norm.weight).transpose(1, 2)
    v = attention.v_proj(a).view(batch, 1, length, dim)
    heads = q.shape[1]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    scores = torch.matmul(q.reshape(batch, heads * length, dim), k[:, 0].transpose(1, 2)) * dim**-0.5
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = scores.view(batch, heads, length, length).masked_fill(later, -1e9)
    mixed = torch.matmul(scores.softmax(-1).view(batch, heads * length, length), v[:, 0])
    mixed = mixed.view(batch, heads, length, dim).transpose(1, 2).reshape(batch, length, -1)
    x = x + attention.o_proj(mixed)
    a = norm(x, layer.post_attention_layernorm.weight)
    return x + mlp.down_proj(F.silu(mlp.gate_proj(a)) * mlp.up_proj(a))


fast_layer_forward = compiled(layer_forward)


def text_features(model: Qwen3VLTextModel, ids: Tensor) -> Tensor:
    """Features (B, L, D * taps), taps innermost, of ids (B, L). Causal: right padding has no effect."""
    x = model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1]).view(1, 1, -1).expand(3, 1, -1)
    cos, sin = (table[0] for table in model.rotary_emb(x, positions))
    tapped = []
    for index in PUBLISHED_TAPS:
        x = fast_layer_forward(model.layers[index], x, cos, sin)
        tapped.append(x)
    return torch.stack(tapped, dim=-1).flatten(2)


def pad(ids: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    """Right-padded ids (B, length) and lengths (B,)."""
    return torch.tensor([row + [0] * (length - len(row)) for row in ids]), torch.tensor(
        [len(row) for row in ids]
    )


class Reader(nn.Module):
    """Linear classifiers of the features, one per question; not part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(FEATURES, sum(PART.values()))
        self.whole = nn.Linear(FEATURES, sum(WHOLE.values()))

    def forward(self, features: Tensor, lengths: Tensor) -> list[Tensor]:
        """Logits (B, answers) for each question, from the tokens after the prompt."""
        last = lengths[:, None] - 1 - MOST_PARTS + torch.arange(MOST_PARTS + 1)
        tokens = features[torch.arange(len(lengths))[:, None], last]
        taken = F.rms_norm(tokens, (FEATURES,), eps=1e-6)
        of_parts = self.part(taken[:, :-1]).split(list(PART.values()), dim=-1)
        of_whole = self.whole(taken[:, -1]).split(list(WHOLE.values()), dim=-1)
        return [*(scores[:, part] for part in range(MOST_PARTS) for scores in of_parts), *of_whole]


def reading_loss(logits: list[Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and the accuracy of each question; wanted (B, questions)."""
    losses, right = [], []
    for question, scores in enumerate(logits):
        target = wanted[:, question]
        known = target >= 0
        total = F.cross_entropy(scores, target, ignore_index=-1, reduction="sum")
        losses.append(total / known.sum().clamp(min=1))
        right.append((scores.argmax(1) == target)[known].float().mean())
    return torch.stack(losses).sum(), torch.stack(right)


def figures(right: Tensor) -> dict[str, float]:
    """The mean accuracy of each kind of question over the parts."""
    of_parts = right[: -len(WHOLE)].view(MOST_PARTS, len(PART)).nanmean(0).tolist()
    return dict(zip((*PART, *WHOLE), (*of_parts, *right[-len(WHOLE) :].tolist()), strict=True))


def random_batch(
    rng: random.Random, tok: PreTrainedTokenizerFast, bucket: Bucket
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (B, L), lengths (B,) and answers (B, questions) of random captions that fit the bucket."""
    captions: list[Caption] = []
    ids: list[list[int]] = []
    while len(ids) < bucket.count:
        more = [random_caption(rng, 128, 128, bucket.form, 0.5, bucket.contents) for _ in range(bucket.count)]
        for caption, row in zip(more, tokenizer.encode(tok, [c.text for c in more]), strict=True):
            if len(row) <= bucket.longest and len(ids) < bucket.count:
                captions.append(caption)
                ids.append(row)
    return *pad(ids, bucket.longest), torch.tensor([answers(c.scene) for c in captions])


def learning_rate(step: int) -> float:
    """Warm up, hold, then fall to 1%."""
    fall = (STEPS - step) / (STEPS * 0.6)
    return LEARNING_RATE * min(1.0, (step + 1) / 100, max(0.01, fall))


def fit(work: Path, shown: bool = True) -> None:
    """Train from the last saved state to the end and write `text.pt` to the work directory."""
    final, partial = work / "text.pt", work / "text.partial.pt"
    if final.exists():
        return
    tok = tokenizer.opened(work / "tokenizer")
    model, reader = build(), Reader()
    embed_numbers(model, tok)
    both = nn.ModuleList([model, reader])
    optimiser = torch.optim.AdamW(both.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    done = 0
    if state := progress.load(partial):
        both.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["step"]
    bar = progress.Progress("text", STEPS, done, shown)
    for step in range(done, STEPS):
        rng = random.Random(f"text {step}")
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        (bucket,) = rng.choices(BUCKETS, [bucket.shares[step >= EASY * STEPS] for bucket in BUCKETS])
        ids, lengths, wanted = random_batch(rng, tok, bucket)
        loss, right = reading_loss(reader(text_features(model, ids), lengths), wanted)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        bar.step(loss=loss.item(), **figures(right))
        if (step + 1) % SAVE_EVERY == 0:
            state = {"model": both.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            progress.save(partial, state)
    bar.close()
    progress.save(final, {"model": model.state_dict(), "reader": reader.state_dict()})
