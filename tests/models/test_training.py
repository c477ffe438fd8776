"""The trainer: held-out combinations, drawn scenes, captions, and resuming a stopped run."""

import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint.loader import load_pipeline
from engine.config.model_config import ModelConfig
from engine.config.part_folders import PartFolders
from engine.kernels.packing import Packing
from engine.models.dit import DiT, DiTConfig
from models.training import dit, pool, scenes, text, vae
from models.training.drawing import draw_scene
from models.training.language import captions, tokenizer
from models.training.pairs import random_boxed_pair
from models.training.reading import read_image, read_name
from models.training.scenes import LETTERS, SHAPES, Element, Scene
from models.training.words import random_boxed_word


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tokenizer.fit(folder)
    return folder


def test_held_out_combinations_are_never_drawn() -> None:
    rng = random.Random(3)
    for draw in (scenes.random_single, scenes.random_boxed):
        for _ in range(500):
            scene = draw(rng, 128, 128, 0.5)
            assert not scenes.held_out(scene.element.name, scene.element.colour, scene.background)


def test_about_one_combination_in_eight_is_held_out() -> None:
    names, colours = (*SHAPES, *LETTERS), list(scenes.COLOURS)
    share = [scenes.held_out(n, c, b) for n in names for c in colours for b in colours if b != c]
    assert 0.1 < sum(share) / len(share) < 0.15


@pytest.mark.parametrize(("kind", "names"), [("shape", SHAPES), ("letter", LETTERS)])
def test_a_drawn_scene_is_recognised(kind: str, names: tuple[str, ...]) -> None:
    for name in names:
        scene = Scene(128, 128, "blue", Element(kind, name, "orange", 56, 72, 64))
        reading = read_image(draw_scene(scene))
        part = reading.parts[0]
        assert (reading.background, part.colour, read_name(part, kind)) == ("blue", "orange", name)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 96), (128, 96), (128, 128)])
def test_an_element_covers_whole_tiles_of_the_image(width: int, height: int) -> None:
    rng = random.Random(4)
    for draw in (scenes.random_single, scenes.random_boxed):
        for _ in range(200):
            element = draw(rng, width, height, 0.5).element
            left, top = element.cx - element.side // 2, element.cy - element.side // 2
            assert {left % scenes.TILE, top % scenes.TILE, element.side % scenes.TILE} == {0}
            assert 0 <= left <= width - element.side
            assert 0 <= top <= height - element.side


def test_an_element_is_drawn_in_its_box() -> None:
    rng = random.Random(4)
    for _ in range(500):
        element = scenes.random_boxed(rng, 128, 128, 0.5).element
        assert element.bbox is not None
        y0, x0, y1, x1 = element.bbox
        assert abs(element.cy / 128 - (y0 + y1) / 2000) < 0.1
        assert abs(element.cx / 128 - (x0 + x1) / 2000) < 0.1


def test_captions_follow_the_schema() -> None:
    rng = random.Random(5)
    drawn = [random_boxed_pair(rng) for _ in range(100)]
    drawn += [random_boxed_word(rng, 128, 128) for _ in range(100)]
    for scene in drawn + [scenes.random_boxed(rng, 128, 128, 0.5) for _ in range(100)]:
        made = json.loads(captions.structured(rng, scene))
        assert list(made)[-1] == "compositional_deconstruction"
        assert len(made["compositional_deconstruction"]["elements"]) == len(scene.elements)
        for element in made["compositional_deconstruction"]["elements"]:
            order = ["type", "bbox", "text", "desc", "color_palette"]
            assert list(element) == [key for key in order if key in element]
            assert element["type"] == ("text" if "text" in element else "obj")


def test_every_number_of_a_box_is_one_token(work: Path) -> None:
    tok = tokenizer.opened(work / "tokenizer")
    assert all(len(tok(str(n), add_special_tokens=False)["input_ids"]) == 1 for n in range(1001))


def test_prompts_are_encoded_with_the_chat_template(work: Path) -> None:
    tok = tokenizer.opened(work / "tokenizer")
    messages = [{"role": "user", "content": [{"type": "text", "text": "ein rötlicher Kreis"}]}]
    rendered = tok.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert (
        tok(rendered, add_special_tokens=False)["input_ids"]
        == tokenizer.encode(tok, ["ein rötlicher Kreis"])[0]
    )


def test_a_resumed_stage_ends_with_the_same_weights(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "fast_layer_forward", text.layer_forward)
    small = tuple(replace(bucket, count=4) for bucket in text.BUCKETS)
    monkeypatch.setattr(text, "BUCKETS", small)
    monkeypatch.setattr(text, "STEPS", 4)
    monkeypatch.setattr(text, "SAVE_EVERY", 2)
    text.fit(work, shown=False)
    whole = torch.load(work / "text.pt")["model"]
    (work / "text.pt").unlink()
    (work / "text.partial.pt").unlink()
    batches, batch = count(), text.random_batch

    def stop_at_the_third(*arguments: Any) -> Any:
        if next(batches) == 2:
            raise KeyboardInterrupt
        return batch(*arguments)

    with monkeypatch.context() as stopped:
        stopped.setattr(text, "random_batch", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            text.fit(work, shown=False)
    text.fit(work, shown=False)
    resumed = torch.load(work / "text.pt")["model"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_exports_a_checkpoint_that_the_engine_loads(tmp_path: Path, work: Path) -> None:
    """Runs the real command with the results of all stages in place."""
    shutil.copytree(work / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "pool").mkdir()
    for path in pool.shard_paths(tmp_path):
        path.touch()
    torch.save({"model": vae.TrainedVAE().state_dict()}, tmp_path / "vae.pt")
    torch.save({"model": text.build().state_dict()}, tmp_path / "text.pt")
    dits = {"conditional": dit.CONDITIONAL, "unconditional": dit.UNCONDITIONAL}
    torch.save({k: dit.build(v, seed=1).state_dict() for k, v in dits.items()}, tmp_path / "dit.pt")
    command = [sys.executable, "-m", "models.training", "--work-dir", str(tmp_path)]
    subprocess.run([*command, "--out", str(tmp_path / "demo")], check=True, cwd=Path(__file__).parents[2])
    assert all(file.stat().st_mode & 0o004 for file in (tmp_path / "demo").rglob("*.*"))
    pipeline = load_pipeline(PartFolders.of(tmp_path / "demo"), "cpu", torch.float32)
    assert pipeline.conditional.config == dit.CONDITIONAL
    assert ModelConfig.load(tmp_path / "demo").limits.max_size == 128


def test_the_dense_training_model_matches_the_packed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights give the same velocity in both."""
    monkeypatch.setattr(dit, "fast_block_forward", dit.block_forward)
    config = DiTConfig(8, 3, 16, 2, 48, 12, 26, 100, (4, 2, 2))
    dense = dit.build(config, seed=0)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    latents, t, features = torch.randn(2, 6, 8), torch.tensor([0.2, 0.7]), torch.randn(2, 5, 26)
    lengths = torch.tensor([5, 3])
    with torch.no_grad():
        wanted, _ = dense(latents, t, (2, 3), features, lengths)
    packed = DiT(config)
    packed.load_state_dict(fused(dense.state_dict()))
    with torch.no_grad():
        for b, length in enumerate(lengths.tolist()):
            words = packed.project_text(features[b, :length])
            packing = Packing.build([length], [6], "cpu")
            got = packed(
                latents[b], [words], packed.modulate(t[b : b + 1]), packed.rotary(length, 2, 3), packing
            )
            torch.testing.assert_close(got, wanted[b], atol=1e-5, rtol=1e-4)


def fused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fuse q, k and v, and the two input matrices of the MLP, as the engine does."""
    made = {k: v for k, v in weights.items() if not k.startswith("outline.")}
    for layer in {k.rsplit(".attention.", 1)[0] for k in made if ".attention." in k}:
        qkv = [made.pop(f"{layer}.attention.to_{x}.weight") for x in "qkv"]
        made[f"{layer}.attention.qkv.weight"] = torch.cat(qkv)
        made[f"{layer}.attention.o.weight"] = made.pop(f"{layer}.attention.to_out.0.weight")
        gate = [made.pop(f"{layer}.feed_forward.w{i}.weight") for i in (1, 3)]
        made[f"{layer}.feed_forward.w13.weight"] = torch.cat(gate)
    return made
