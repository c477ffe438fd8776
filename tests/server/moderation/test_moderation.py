"""Moderation of prompts and images, against fake upstreams that check the requests they receive."""

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from server.integrations import Integrations
from server.moderation.deny_list import DenyList
from server.moderation.moderator import PASSED
from server.moderation.webhook import Webhook
from server.settings.config_error import ConfigError
from server.settings.settings import Settings
from server.upstream.client import Upstream, UpstreamClients
from tests.server import sse
from tests.server.access.test_api_keys import bearer, write_keys
from tests.server.edits.client import edit
from tests.server.fake_upstream import (
    BOMB_BYTES,
    MISBEHAVIOURS,
    SECRET,
    Asked,
    FakeUpstream,
    Reply,
    crumbles,
    explodes,
    fails,
    hangs,
    held,
    is_json,
    litters,
    says,
    upstream,
)
from tests.server.process import ServerProcess, small, until
from tests.server.routes.test_errors import check

Start = Callable[..., ServerProcess]
MODULE = "tests.server.prompt_server"
CAPTION = {"compositional_deconstruction": {"background": "a wombat", "elements": []}}


def classes(**values: float) -> Any:
    """A response of Hive."""
    return {"output": [{"classes": [{"class": name, "value": value} for name, value in values.items()]}]}


CLEAN_TEXT = classes(hate=0, violence=0, bullying=-1)
CLEAN_IMAGE = classes(general_not_nsfw_not_suggestive=0.99, no_gun=1.0, animated=0.95, general_nsfw=0.01)
PASS = {"flagged": False}
ENTRIES = ("violence: blow up", "n\u200baughtywo\u0308rd", "", "colon: thing: with", "Rude phrase", "Straße")
DENIED = "\r\n".join(("\ufeff# of a test", *ENTRIES))


def takes_hive_text(asked: Asked) -> bool:
    (entry,) = asked.json["input"]
    return (
        asked.path == "/text-moderation"
        and is_json(asked)
        and asked.headers["authorization"] == f"Bearer {SECRET}"
        and asked.json.keys() == {"input"}
        and entry.keys() == {"text"}
        and len(entry["text"]) <= 1024
    )


def takes_hive_image(asked: Asked) -> bool:
    media_type, data = asked.media
    return (
        asked.path == "/visual-moderation"
        and asked.headers["authorization"] == f"Bearer {SECRET}"
        and asked.headers["content-type"].startswith("multipart/form-data")
        and Image.open(io.BytesIO(data)).get_format_mimetype() == media_type
    )


def takes_hive(asked: Asked) -> bool:
    return takes_hive_text(asked) if is_json(asked) else takes_hive_image(asked)


def takes_webhook(asked: Asked) -> bool:
    kinds = {"prompt": {"type", "text"}, "image": {"type", "media_type", "b64"}}
    right = is_json(asked) and asked.headers["authorization"] == "Bearer own-token"
    return right and asked.json.keys() == kinds[asked.json["type"]]


class World(NamedTuple):
    """A server and its fake upstreams."""

    server: ServerProcess
    hive: FakeUpstream
    webhook: FakeUpstream

    def drawn(self) -> list[str]:
        texts: list[str] = self.server.http.get("/_fake/drawn").json()
        return texts

    def create(self, headers: dict[str, str] | None = None, **body: Any) -> Any:
        return self.server.create(headers, **body)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moderation")
    (folder / "hive-key").write_text(SECRET)
    (folder / "deny").write_bytes(DENIED.encode())
    write_keys(
        folder / "keys.json",
        {"name": "web", "key": "web"},
        {"name": "trusted", "key": "trusted", "may_disable": ["moderation"]},
    )
    return folder


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[FakeUpstream, FakeUpstream]]:
    with ExitStack() as stack:
        hive = stack.enter_context(upstream(takes_hive, CLEAN_TEXT))
        webhook = stack.enter_context(upstream(takes_webhook, PASS))
        yield hive, webhook
        assert (hive.wrong, webhook.wrong) == ([], [])


def open_world(services: tuple[FakeUpstream, FakeUpstream], folder: Path, *flags: str) -> World:
    hive, webhook = services
    process = ServerProcess(
        *("--hive-url", hive.url + "/", "--hive-key-file", str(folder / "hive-key")),
        *("--moderation-webhook-url", webhook.url, "--moderation-seconds", "2"),
        *("--deny-list-file", str(folder / "deny"), "--api-keys-file", str(folder / "keys.json")),
        *flags,
        module=MODULE,
        IDEOSERVE_MODERATION_WEBHOOK_KEY="own-token",
    )
    process.http.headers["Authorization"] = "Bearer web"
    return World(process, hive, webhook)


def close_world(world: World) -> None:
    for place in (world.server.log, world.server.http.get("/metrics").text):
        for word in (SECRET, "own-token", "wombat", "naughtyword"):
            assert word not in place
    world.server.close()


@pytest.fixture(scope="module")
def of_prompts(services: tuple[FakeUpstream, FakeUpstream], folder: Path) -> Iterator[World]:
    world = open_world(services, folder, "--prompt-moderation", "deny-list, hive, webhook")
    yield world
    close_world(world)


@pytest.fixture(scope="module")
def of_images(services: tuple[FakeUpstream, FakeUpstream], folder: Path) -> Iterator[World]:
    world = open_world(services, folder, "--image-moderation", "hive,webhook")
    yield world
    close_world(world)


@pytest.fixture
def prompts(of_prompts: World) -> World:
    of_prompts.hive.reset(CLEAN_TEXT)
    of_prompts.webhook.reset(PASS)
    return of_prompts


@pytest.fixture
def images(of_images: World) -> World:
    of_images.hive.reset(CLEAN_IMAGE)
    of_images.webhook.reset(PASS)
    return of_images


def refused(response: Any, *categories: str) -> None:
    param = "prompt" if "prompt" in response.json()["error"]["message"] else None
    body = response.json()["error"]
    assert (response.status_code, body["code"], body["param"]) == (400, "content_policy_violation", param)
    assert body["categories"] == sorted(categories)
    assert all(category in body["message"] for category in categories)
    assert response.headers["x-should-retry"] == "false"
    assert "wombat" not in response.text


def test_moderators_are_called_in_order(prompts: World) -> None:
    assert prompts.create(prompt="a wombat").status_code == 200
    assert prompts.hive.asked[0].json == {"input": [{"text": "a wombat"}]}
    assert prompts.webhook.asked[0].json == {"type": "prompt", "text": "a wombat"}
    assert prompts.drawn()[-1] == "a wombat"
    prompts.hive.answer = classes(hate=1)
    refused(prompts.create(prompt="a wombat"), "hate")
    assert len(prompts.webhook.asked) == 1


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
def test_a_refused_prompt_does_not_reach_the_engine(prompts: World, accept: str) -> None:
    before = len(prompts.drawn())
    prompts.hive.answer = classes(hate=2, violence=1, bullying=0, spam=-1)
    refused(prompts.create({"Accept": accept}, prompt="a wombat"), "hate", "violence")
    prompts.hive.answer = CLEAN_TEXT
    prompts.webhook.answer = {"flagged": True, "categories": ["own/rule"]}
    refused(prompts.create({"Accept": accept}, prompt="a wombat"), "own/rule")
    assert len(prompts.drawn()) == before
    until(lambda: prompts.server.metric("ideoserve_backlog_seconds") == 0)


def test_the_image_of_an_edit_is_moderated_before_it_is_drawn(images: World) -> None:
    before = len(images.drawn())
    images.hive.answer = classes(general_nsfw=1.0)
    error = edit(images.server).json()["error"]
    assert (error["code"], error["param"]) == ("content_policy_violation", "image")
    assert error["categories"] == ["general_nsfw"]
    images.hive.answer = "no answer of Hive"
    response = edit(images.server)
    assert check(response, 503, "moderation_unavailable")["message"].startswith("The uploaded image")
    assert response.headers["retry-after"] == "5"
    assert len(images.drawn()) == before
    images.hive.reset(CLEAN_IMAGE)
    assert edit(images.server, size="96x96").status_code == 200
    uploaded, made = (Image.open(io.BytesIO(asked.media[1])) for asked in images.hive.asked)
    assert (uploaded.format, uploaded.size, made.format) == ("JPEG", (96, 96), "PNG")


def test_categories_are_plain_words(prompts: World) -> None:
    prompts.webhook.answer = {"flagged": True, "categories": ["a wombat, of course", "fine"]}
    refused(prompts.create(prompt="a wombat"), "fine", "other")
    prompts.webhook.answer = {"flagged": True}
    refused(prompts.create(prompt="a wombat"), "other")


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("to Blow  UP a wombat", "violence"),
        ("blow-up", "violence"),
        ("".join(chr(ord(letter) + 0xFEE0) for letter in "naughtyword"), "deny_list"),
        ("naughty\u200bword!", "deny_list"),
        ("naughty\ufe0f\u034fword", "deny_list"),
        ("n\u0336a\u0336ughty\u3164word", "deny_list"),
        ("Thing, with", "colon"),
        ("naughty\u20ddword", "deny_list"),  # an enclosing circle
        ("naughty\u2065word", "deny_list"),  # unassigned and default-ignorable
        ("naughty\U000e0077word", "deny_list"),  # a tag
        ("naughty\u00ad\u200d\u2060word", "deny_list"),
        ("naughty\x08word", "deny_list"),
        ("naughty\ufff0\U000e0fffword", "deny_list"),
        ("n\u0303a\u0301ughtywörd", "deny_list"),
        ("naughtyword\u0489", "deny_list"),
        ("".join(chr(ord(letter) - 97 + 0x1D51E) for letter in "naughtyword"), "deny_list"),  # fraktur
        ("".join(chr(ord(letter) - 97 + 0x24D0) for letter in "naughtyword"), "deny_list"),  # in circles
        ("NAUGHTYWORD's", "deny_list"),
        ("rude\r\nphrase", "deny_list"),
        ("STRASSE", "deny_list"),
    ],
)
def test_the_deny_list(prompts: World, text: str, category: str) -> None:
    refused(prompts.create(prompt=text), category)
    caption = {"compositional_deconstruction": {"background": text, "elements": []}}
    refused(prompts.create(json_prompt=caption), category)
    refused(prompts.create(json_prompt=CAPTION | {text: 1}), category)
    assert prompts.hive.asked == []


@pytest.mark.parametrize(
    "text",
    [
        *("blow", "up blow", "naughtywords", "an unnaughtyword", "of a test", "something with"),
        *(
            "n a u g h t y w o r d",
            "n.aughtyword",
            "n\u0430ughtyword",
            "n4ughtyword",
            "ɴaughtyword",
        ),  # documented
    ],
)
def test_what_the_deny_list_does_not_match(prompts: World, text: str) -> None:
    assert prompts.create(prompt=text).status_code == 200


def test_the_deny_list_is_reloaded_and_a_server_without_keys_allows_no_opt_out(
    start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "deny"
    file.write_text("first")
    server = start("--prompt-moderation", "deny-list", "--deny-list-file", str(file))
    assert server.create(prompt="the first").status_code == 400
    file.write_text("the second")
    assert server.create(prompt="the first").status_code == 200
    assert server.create(prompt="the second").status_code == 400
    check(server.create(prompt="x", moderation="off"), 403, "disabling_not_allowed", "moderation")
    for useless in ("", "# only this\n\n", "fine\n!!!\n"):
        file.write_text(useless)
        assert server.create(prompt="the second").status_code == 400
    file.unlink()
    assert server.create(prompt="the second").status_code == 400
    said = [line["message"] for line in server.logged(level="error", logger="server.settings.watched_file")]
    assert ["no entry" in message for message in said] == [True, True, False, False]
    assert "line 2 has no letter or digit" in said[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no entry"),
        (b"\xef\xbb\xbf# a remark\n \n", "no entry"),
        (b"a\n \xe2\x80\x8b\xcc\x81\n", "line 2 has no letter or digit"),
        (b"violence: ?!", "line 1 has no letter or digit"),
        (b"\xff\xfea\x00", "the file cannot be read"),
    ],
)
def test_a_deny_list_without_entries(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "deny"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--deny-list-file: {said}"):
        DenyList(file)


def test_a_long_run_of_marks_takes_no_longer_than_letters(tmp_path: Path) -> None:
    """Normalization sorts marks in quadratic time."""
    file = tmp_path / "deny"
    file.write_text("a")
    moderator = DenyList(file)

    def seconds(text: str) -> float:
        started = time.process_time()
        asyncio.run(moderator.moderate_text(text))
        return time.process_time() - started

    letters = min(seconds("ab" * 16_000) for _ in range(3))
    for marks in ("\u0301\u0327", "\U0001d165\U0001d16d"):
        assert min(seconds(marks * 16_000) for _ in range(3)) < 20 * letters


def test_long_texts_and_lists_do_not_block_the_event_loop(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "deny"
    file.write_text("".join(f"word{number}\n" for number in range(20_000)) + "last one")
    server = start("--prompt-moderation", "deny-list", "--deny-list-file", str(file))
    marks = "\u0301\u0327" * 15_000  # normalization would sort them
    spacing = "\U0001d165\U0001d16d" * 15_000
    for text in (marks, spacing, "a" * 31_000, "\ufdfa" * 31_000):
        server.http.get("/_fake/stall")
        assert server.create(prompt=f"{text} Last {marks[:9]}one").status_code == 400
        assert server.http.get("/_fake/stall").json()["own"] < 0.05


def test_a_long_text_is_sent_in_overlapping_pieces(prompts: World) -> None:
    text = " ".join(f"word{number}" for number in range(700))
    assert prompts.create(prompt=text).status_code == 200
    pieces = {asked.json["input"][0]["text"] for asked in prompts.hive.asked}
    assert len(pieces) == 6
    assert all(any(text[at : at + 100] in piece for piece in pieces) for at in range(0, len(text) - 100, 7))
    prompts.hive.next.append(says(classes(hate=3)))
    refused(prompts.create(prompt=text), "hate")
    prompts.hive.next.append(fails)
    check(prompts.create(prompt=text), 503, "moderation_unavailable")
    # One flagged piece is enough, even if the other calls fail.
    prompts.hive.next.extend([fails, says(classes(hate=3))])
    refused(prompts.create(prompt=text), "hate")


@pytest.mark.parametrize("how", [*MISBEHAVIOURS, "nan", "no classes", "beyond"])
def test_fail_closed(prompts: World, how: str) -> None:
    before = len(prompts.drawn())
    nan = says(json.loads('{"output": [{"classes": [{"class": "hate", "value": NaN}]}]}'))
    others = {"nan": nan, "no classes": says({"output": [{"classes": []}]}), "beyond": says(classes(hate=7))}
    prompts.hive.next.append({**MISBEHAVIOURS, **others}[how])
    response = prompts.create(prompt="a wombat")
    check(response, 503, "moderation_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert SECRET not in response.text
    assert len(prompts.drawn()) == before


@pytest.mark.parametrize("how", [explodes, litters, crumbles])
def test_a_response_is_bounded_in_memory_and_time(prompts: World, how: Reply) -> None:
    prompts.server.http.get("/_fake/stall")
    prompts.server.peak_bytes()
    before = prompts.server.peak_bytes()
    prompts.hive.next.append(how)
    expected = 200 if how is crumbles else 503
    assert prompts.create(prompt="a wombat").status_code == expected
    assert prompts.server.peak_bytes() - before < BOMB_BYTES // 2
    assert prompts.server.http.get("/_fake/stall").json()["own"] < 0.05


@pytest.mark.parametrize("how", ["lies", "fails", "explodes"])
def test_fail_closed_for_the_webhook(prompts: World, how: str) -> None:
    prompts.webhook.next.append(MISBEHAVIOURS[how])
    check(prompts.create(prompt="a wombat"), 503, "moderation_unavailable")


def test_fail_open_with_previews(services: tuple[FakeUpstream, FakeUpstream], folder: Path) -> None:
    flags = (
        "--prompt-moderation",
        "hive,webhook",
        "--image-moderation",
        "hive",
        "--moderation-failure",
        "open",
        "--moderated-previews",
    )
    world = open_world(services, folder, *flags)
    world.hive.reset(CLEAN_TEXT)
    world.webhook.reset(PASS)
    world.hive.next.extend([hangs, fails])
    response = world.create(prompt="a wombat")
    assert response.status_code == 200
    assert "warnings" not in response.json()
    assert world.server.logged(moderator="hive", subject="prompt", passed=True)
    assert world.server.logged(moderator="hive", subject="image", passed=True)
    world.hive.next.extend([says(CLEAN_TEXT), says(CLEAN_IMAGE)])
    events = sse.named(world.create(prompt="a wombat", stream=True, partial_images=2).text.split("\n"))
    assert [event.name.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]
    # The next moderator still refuses.
    world.hive.next.append(fails)
    world.webhook.answer = {"flagged": True, "categories": ["a"]}
    refused(world.create(prompt="a wombat"), "a")
    close_world(world)


def test_opting_out_requires_permission(prompts: World) -> None:
    prompts.hive.answer = classes(hate=3)
    check(prompts.create(prompt="a wombat", moderation="off"), 403, "disabling_not_allowed", "moderation")
    assert prompts.hive.asked == []
    assert prompts.create(bearer("trusted"), prompt="a wombat", moderation="off").status_code == 200
    assert prompts.hive.asked == []
    for word in ("auto", "low"):  # OpenAI's values, which do not opt out
        refused(prompts.create(bearer("trusted"), prompt="a wombat", moderation=word), "hate")


def test_the_expanded_prompt_is_moderated_too(
    services: tuple[FakeUpstream, FakeUpstream], folder: Path
) -> None:
    with upstream(is_json, {"json_prompt": CAPTION}) as expanding:
        flags = ("--magic-prompt-backend", "webhook", "--magic-prompt-url", expanding.url)
        world = open_world(services, folder, "--prompt-moderation", "deny-list,hive", *flags)
        world.hive.reset(CLEAN_TEXT)
        assert world.create(prompt="an animal").status_code == 200
        texts = [asked.json["input"][0]["text"] for asked in world.hive.asked]
        assert texts == ["an animal", "a wombat"]
        bad = {"compositional_deconstruction": {"background": "naughtyword", "elements": []}}
        expanding.answer = {"json_prompt": bad}
        refused(world.create(prompt="another animal"), "deny_list")
        assert len(world.drawn()) == 1
        # A refused prompt is not sent to the magic prompt upstream.
        asked = len(expanding.asked)
        refused(world.create(prompt="naughtyword"), "deny_list")
        assert len(expanding.asked) == asked
        close_world(world)


def test_an_idempotent_retry_of_a_refusal_calls_no_moderator(prompts: World) -> None:
    prompts.hive.answer = classes(hate=1)
    prompts.hive.next.append(held)
    while prompts.hive.arrived.acquire(blocking=False):
        pass
    key = {"Idempotency-Key": "refused"}
    with ThreadPoolExecutor() as pool:
        first = pool.submit(prompts.create, key, prompt="a wombat")
        assert prompts.hive.arrived.acquire(timeout=30)
        second = pool.submit(prompts.create, key, prompt="a wombat")
        prompts.hive.release.set()
        refused(first.result(), "hate")
        refused(second.result(), "hate")
    prompts.hive.release.clear()
    refused(prompts.create(key, prompt="a wombat"), "hate")
    assert len(prompts.hive.asked) == 1


def test_the_encoded_file_is_moderated(images: World) -> None:
    for output_format in ("png", "jpeg", "webp"):
        response = images.create(prompt="a wombat", output_format=output_format)
        sent = base64.b64decode(response.json()["data"][0]["b64_json"])
        assert images.hive.asked[-1].media == (f"image/{output_format}", sent)
        shown = images.webhook.asked[-1].json
        assert (shown["media_type"], base64.b64decode(shown["b64"])) == (f"image/{output_format}", sent)


@pytest.mark.parametrize("moderator", ["hive", "webhook"])
@pytest.mark.parametrize("accept", ["application/json", "image/png"])
def test_a_refused_image_is_not_sent(images: World, accept: str, moderator: str) -> None:
    if moderator == "hive":
        images.hive.answer = classes(general_nsfw=0.9, no_gun=1.0, very_bloody=0.89)
    else:
        images.webhook.answer = {"flagged": True, "categories": ["general_nsfw"]}
    response = images.create({"Accept": accept}, prompt="a wombat")
    refused(response, "general_nsfw")
    assert len(response.content) < 1000


def test_no_preview_of_a_refused_image_is_sent(images: World) -> None:
    images.hive.answer = classes(general_nsfw=0.95)
    response = images.create(prompt="a wombat", stream=True, partial_images=3)
    events = sse.named(response.text.split("\n"))
    assert [event.name for event in events] == ["error"]
    assert events[0].data["error"]["code"] == "content_policy_violation"
    assert events[0].data["error"]["categories"] == ["general_nsfw"]
    assert "b64" not in response.text


def test_previews_are_off_with_a_warning(images: World) -> None:
    response = images.create(prompt="a wombat", stream=True, partial_images=3)
    (completed,) = sse.named(response.text.split("\n"))
    assert [warning["code"] for warning in completed.data["warnings"]] == ["previews_off"]


def test_previews_are_off_for_an_expanded_prompt_too(
    services: tuple[FakeUpstream, FakeUpstream], folder: Path
) -> None:
    with upstream(is_json, {"json_prompt": CAPTION | {"mood": "calm"}}) as expanding:
        flags = ("--magic-prompt-backend", "webhook", "--magic-prompt-url", expanding.url)
        world = open_world(services, folder, "--image-moderation", "hive", *flags)
        world.hive.reset(CLEAN_IMAGE)
        response = world.create(prompt="an animal", stream=True, partial_images=3)
        (completed,) = sse.named(response.text.split("\n"))
        codes = [warning["code"] for warning in completed.data["warnings"]]
        assert codes == ["previews_off", "unknown_key", "empty"]
        close_world(world)


def test_the_second_of_two_images_is_refused(images: World) -> None:
    images.hive.next.extend([says(CLEAN_IMAGE), says(classes(very_bloody=1.0))])
    events = sse.named(images.create(prompt="a wombat", n=3, stream=True).text.split("\n"))
    assert [event.name for event in events] == ["image_generation.completed", "error"]
    images.hive.next.extend([says(CLEAN_IMAGE), says(classes(very_bloody=1.0))])
    refused(images.create(prompt="a wombat", n=3), "very_bloody")


@pytest.mark.parametrize("how", ["hangs", "fails", "lies", "explodes"])
def test_an_image_that_cannot_be_moderated_is_not_sent(images: World, how: str) -> None:
    images.hive.next.append(MISBEHAVIOURS[how])
    response = images.create(prompt="a wombat")
    check(response, 503, "moderation_unavailable")
    # A retry would generate the image again.
    assert response.headers["x-should-retry"] == "false"


def test_an_upstream_that_hangs_does_not_block_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when all of its connections are in use."""
    monkeypatch.setattr("server.upstream.client.MAX_CONNECTIONS", 1)

    async def ask(silent: FakeUpstream, quick: FakeUpstream) -> None:
        upstreams = UpstreamClients(lambda *_: None)
        waiting = asyncio.create_task(
            Webhook(Upstream("silent", silent.url, 60, upstreams)).moderate_text("a")
        )
        assert await asyncio.to_thread(silent.arrived.acquire, timeout=30)
        assert await Webhook(Upstream("quick", quick.url, 20, upstreams)).moderate_text("a") == PASSED
        waiting.cancel()
        await asyncio.wait([waiting])
        await upstreams.close()

    with upstream(is_json, PASS) as silent, upstream(is_json, PASS) as quick:
        silent.next.append(hangs)
        asyncio.run(ask(silent, quick))


def test_a_disconnect_cancels_the_call(images: World) -> None:
    images.hive.next.append(hangs)
    for semaphore in (images.hive.arrived, images.hive.hung_up):
        while semaphore.acquire(blocking=False):
            pass
    body = json.dumps(small(prompt="a wombat")).encode()
    head = (
        "POST /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer web\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", images.server.port), timeout=30) as client:
        client.sendall(head.encode() + body)
        assert images.hive.arrived.acquire(timeout=30)
    assert images.hive.hung_up.acquire(timeout=30)
    images.server.logged(message="request", outcome="client_disconnected")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt_moderation": "hive"}, "--hive-key-file or IDEOSERVE_HIVE_KEY is required"),
        ({"prompt_moderation": "deny-list"}, "--deny-list-file or IDEOSERVE_DENY_LIST_FILE is required"),
        (
            {"prompt_moderation": "deny-list", "deny_list_file": "/"},
            "--deny-list-file: the file cannot be read",
        ),
        ({"prompt_moderation": "webhook"}, "--moderation-webhook-url or IDEOSERVE_MODERATION_WEBHOOK_URL"),
        ({"prompt_moderation": "hive,magic", "hive_key": "k"}, "--prompt-moderation: unknown moderator"),
        ({"image_moderation": "deny-list"}, "--image-moderation: unknown moderator"),
        ({"prompt_moderation": " , "}, "--prompt-moderation: names no moderator"),
        ({"image_moderation": ","}, "--image-moderation: names no moderator"),
        (
            {"prompt_moderation": "hive", "hive_key": "a\nb"},
            "--hive-key-file: the secret contains line breaks",
        ),
    ],
)
def test_incomplete_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        Integrations(Settings(model="fake", **given), UpstreamClients(lambda *_: None), "fake")
