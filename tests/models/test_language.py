"""The language of the training prompts: frames, held-out frames, and what prompts say."""

import random
import re
from collections.abc import Iterator
from itertools import product

import pytest
from PIL import Image

from models.training import pairs, scenes, words
from models.training.drawing import draw_scene
from models.training.language import clauses, frames, relations, sentences, tables, tokenizer, wording
from models.training.language.vocabulary import BACKGROUND_WORDS, COLOUR_WORDS, ENDINGS, OPENINGS, STRANGE
from models.training.language.wording import described
from models.training.questions import ALL, ANYWHERE, NAMES, answers
from models.training.reading_two import read_two, read_word, shows_both
from models.training.scenes import COLOURS, LETTERS, Element, Scene
from tests.models.parsing import INVERSE, Said, said_of_shapes, said_of_text

GROUPS = {**frames.SENTENCES, **{f"two, {name}": each for name, each in frames.TWO.items()}}
GROUPS |= {"related": frames.RELATED, "words": frames.WORDS}


def all_frames(measuring: bool) -> list[str]:
    return [frame for group in GROUPS.values() for frame in group.of(measuring)]


def random_scene(rng: random.Random) -> Scene:
    draw = rng.choice((pairs.random_pair, random_word, random_letter, random_shape))
    return draw(rng)


def random_word(rng: random.Random) -> Scene:
    return words.random_word(rng, 128, 128)


def random_letter(rng: random.Random) -> Scene:
    return scenes.random_single(rng, 128, 128, 1.0)


def random_shape(rng: random.Random) -> Scene:
    return scenes.random_single(rng, 128, 128, 0.0)


def test_there_are_many_frames_and_each_is_there_once() -> None:
    trained, held_out = all_frames(False), all_frames(True)
    assert len({*trained, *held_out}) == len(trained) + len(held_out)
    assert sum(len(group.trained) for group in frames.SENTENCES.values()) >= 60
    assert len(held_out) >= 12
    assert set(frames.USUAL) <= set(trained)


@pytest.mark.parametrize("name", GROUPS)
def test_frames_of_every_kind_are_held_out(name: str) -> None:
    assert len(GROUPS[name].held_out) >= 2


def test_all_words_of_a_held_out_frame_are_known_from_others() -> None:
    known, asked = (
        {word for frame in all_frames(held_out) for word in re.findall(r"\w+", frame)}
        for held_out in (False, True)
    )
    assert asked <= known


def test_words_without_meaning_have_none() -> None:
    known = {word for text in tables.texts() for word in re.findall(r"[a-z]+", text.lower())}
    assert not known & {word.lower() for word in STRANGE}


def pattern(frame: str) -> str:
    """A regular expression of the prompts in a frame."""
    colour = "|".join({*COLOURS, *(word for each in COLOUR_WORDS.values() for word in each)})
    slots = {"c": f"(?:{colour})", "k": f"(?:{colour})", "ac": f"(?:an? )?(?:{colour})"}
    slots |= {"g": f"(?:{'|'.join(BACKGROUND_WORDS)})", "w": r"[\"']?[a-z]{2,4}[\"']?"}
    parts = re.split(r"{(\w+)}", frame)
    literal = [slots.get(part, ".+") if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return "".join(literal)


def held_out_pattern() -> re.Pattern[str]:
    before = "|".join((*OPENINGS, *(f"{word} " for word in STRANGE), "[a-z]{5,9} "))
    after = "|".join((*ENDINGS, ", [a-z]{4,}"))
    held_out = "|".join(pattern(frame) for group in frames.SENTENCES.values() for frame in group.held_out)
    return re.compile(rf"(?:{before})?(?:{held_out})(?:{after})?[.!?]?".lower())


def test_held_out_frames_never_occur_in_training() -> None:
    rng, held_out = random.Random(1), held_out_pattern()
    for _ in range(2000):
        prompt = sentences.plain(rng, random_scene(rng)).lower()
        assert not held_out.fullmatch(prompt), prompt


def test_the_pattern_of_held_out_frames_finds_them() -> None:
    rng, held_out = random.Random(2), held_out_pattern()
    for kind in frames.SENTENCES:
        assert held_out.fullmatch(sentences.measured(rng, random_scene(rng), kind).lower())


def filled(rng: random.Random, scene: Scene) -> Iterator[str]:
    """The scene in every frame, in phrases of both sets."""
    for measuring in (False, True):
        for group in frames.SENTENCES.values():
            for frame in group.of(measuring):
                what = described(rng, scene, measuring=rng.random() < 0.3)
                yield sentences.fill(rng, frame, what, scene.background)


def says(said: Said, scene: Scene) -> bool:
    """Whether this is the scene, with its elements in either order."""
    named = tuple((element.name, element.colour) for element in scene.elements)
    if said.background != scene.background:
        return False
    if said.relation != scene.relation and said.relation in INVERSE:
        said = Said(said.elements[::-1], said.background, INVERSE[said.relation])
    return (said.elements, said.relation) == (named, scene.relation)


def test_prompts_say_what_their_scenes_show() -> None:
    rng = random.Random(3)
    for draw, read in (
        (random_shape, said_of_shapes),
        (random_letter, said_of_text),
        (random_word, said_of_text),
    ):
        for _ in range(3):
            scene = draw(rng)
            for prompt in filled(rng, scene):
                assert says(read(prompt), scene), prompt


def test_prompts_of_two_elements_say_their_relation(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    monkeypatch.setattr(wording, "COMPOSED_TWO", 0.0)
    for _ in range(12):
        scene = pairs.random_pair(rng)
        if {element.kind for element in scene.elements} == {"shape"}:
            for prompt in filled(rng, scene):
                assert says(said_of_shapes(prompt), scene), prompt


@pytest.mark.parametrize("relation", ["left", "above", "inside", "right", "below"])
def test_composed_frames_say_their_relation(relation: str) -> None:
    rng = random.Random(relation)
    for _ in range(300):
        any_relation = relations.compose(rng, relation, is_any=True)
        assert re.search(r"{a}.*{r} {b}|{r} {b}.*{a}|{b}.*{r} it\b.*{a}|{b}.*{a} {r} it$", any_relation)
        if relation in frames.TWO:
            frame = relations.compose(rng, relation, is_any=False)
            first, second = re.split("|".join(map(re.escape, relations.JOINTS)), frame)
            of_a, of_b = (first, second) if "{a}" in first else (second, first)
            assert "{b}" in of_b
            assert re.search(
                {"left": "left", "above": "top|upper|above", "inside": r"\bin\b|inside|within"}[relation],
                of_a,
            )
            assert re.fullmatch(
                {"left": ".*right.*", "above": ".*(bottom|lower|below).*", "inside": "{b}"}[relation], of_b
            )


def test_composed_frames_are_not_those_held_out() -> None:
    rng = random.Random(5)
    for group, composed in (
        (frames.SENTENCES.values(), [clauses.compose(rng)[1] for _ in range(2000)]),
        ([frames.RELATED], [relations.compose(rng, "left", is_any=True) for _ in range(1000)]),
        (
            frames.TWO.values(),
            [relations.compose(rng, name, is_any=False) for name in frames.TWO for _ in "x" * 300],
        ),
    ):
        held_out = {clauses.words(frame) for each in group for frame in each.held_out}
        assert not held_out & {clauses.words(frame) for frame in composed}


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> tokenizer.PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.fit(folder)
    return tokenizer.opened(folder / "tokenizer")


def test_case_and_white_space_make_no_difference(tok: tokenizer.PreTrainedTokenizerFast) -> None:
    prompt = "Make the background pink and put a black B on it"
    variants = [prompt.upper(), prompt.lower(), prompt.title(), prompt.replace(" ", "\n ")]
    ids = tokenizer.encode(tok, [prompt, *variants])
    assert all(row == ids[0] for row in ids)


def test_known_words_are_tokens_and_others_are_spelled(
    tok: tokenizer.PreTrainedTokenizerFast,
) -> None:
    rng = random.Random(6)
    known = tok.tokenize("a crimson rhombus behind it, background: Q")
    assert known == ["a", "crimson", "rhombus", "behind", "it", ",", "background", ":", "q"]
    assert tok.tokenize("CAT Wonderful é")[:4] == ["c", "##a", "##t", "w"]
    prompts = [sentences.fill(rng, frame, "x", "red") for frame in all_frames(True) if "{x}" in frame]
    assert not any(token.startswith("##") for prompt in prompts for token in tok.tokenize(prompt))


def test_two_elements_that_are_drawn_are_recognised() -> None:
    rng = random.Random(7)
    for draw in (pairs.random_pair, pairs.random_boxed_pair):
        for _ in range(15):
            scene = draw(rng)
            reading = read_two(draw_scene(scene))
            assert reading.background == scene.background
            assert shows_both(reading, scene) == {"elements": True, "relation": True, "both": True}, scene


def test_swapped_elements_are_not_recognised() -> None:
    rng = random.Random(8)
    for _ in range(5):
        scene = pairs.random_pair(rng)
        swapped = Scene(128, 128, scene.background, *scene.elements[::-1], scene.relation)
        assert not shows_both(read_two(draw_scene(scene)), swapped)["both"]


def test_images_of_anything_can_be_read() -> None:
    """Models draw what they like."""
    rng = random.Random(12)
    for level in (0, 60, 200):
        image = Image.frombytes("RGB", (48, 48), bytes(rng.randint(0, level) for _ in range(3 * 48 * 48)))
        assert len(read_two(image).parts) <= 2
        assert len(read_word(image)) <= 3
    faint = Image.new("RGB", (128, 128), (225, 225, 225))
    faint.paste((185, 185, 185), (30, 30, 90, 90))
    assert read_two(faint).parts == ()


def test_words_that_are_drawn_are_recognised() -> None:
    rng = random.Random(9)
    for size, draw in product(((128, 128), (96, 96)), (words.random_word, words.random_boxed_word)):
        for _ in range(8):
            scene = draw(rng, *size)
            assert read_word(draw_scene(scene)) == scene.element.name


def test_held_out_words_and_combinations_of_pairs_are_never_drawn() -> None:
    rng = random.Random(10)
    for _ in range(300):
        assert not words.held_out_word(words.random_word(rng, 128, 128).element.name)
        assert words.held_out_word(words.known_text(rng))
        scene = rng.choice((pairs.random_pair, pairs.random_boxed_pair))(rng)
        for element in scene.elements:
            assert not scenes.held_out(element.name, element.colour, scene.background)


def test_two_elements_and_words_cover_whole_tiles() -> None:
    rng = random.Random(11)
    for _ in range(200):
        scene = rng.choice((pairs.random_pair, pairs.random_boxed_pair, random_word))(rng)
        for element in scene.elements:
            wide = element.side * (len(element.name) if element.kind == "word" else 1)
            left, top = element.cx - wide // 2, element.cy - element.side // 2
            assert {left % scenes.TILE, top % scenes.TILE} == {0}
            assert 0 <= left <= 128 - wide
            assert 0 <= top <= 128 - element.side


def answered(scene: Scene) -> dict[str, int]:
    return dict(zip(ALL, answers(scene), strict=True))


def test_each_part_is_answered_by_its_own_token() -> None:
    red, blue = Element("shape", "circle", "red"), Element("letter", LETTERS[0], "blue")
    right = answered(Scene(128, 128, "white", red, blue, "left"))
    assert [NAMES[right[f"name {part}"]] for part in (1, 2, 3, 4)] == ["circle", LETTERS[0], "", ""]
    assert [list(COLOURS)[right[f"colour {part}"]] for part in (1, 2)] == ["red", "blue"]
    assert [ANYWHERE[right[f"place {part}"]] for part in (1, 2)] == ["left half", "right half"]
    assert right["colour 3"] == right["place 3"] == right["cx 1"] == -1


def test_each_letter_of_a_word_is_answered_by_its_own_token() -> None:
    right = answered(Scene(128, 128, "white", Element("word", "ABC", "red", bbox=(0, 0, 250, 750))))
    assert [NAMES[right[f"name {part}"]] for part in (1, 2, 3, 4)] == ["A", "B", "C", ""]
    assert [ANYWHERE[right[f"place {part}"]] for part in (1, 2, 3)] == ["1 of 3", "2 of 3", "3 of 3"]
    assert [right[f"cx {part}"] for part in (1, 2, 3, 4)] == [2, 6, 10, -1]
    assert {right[f"colour {part}"] for part in (1, 2, 3)} == {list(COLOURS).index("red")}
