"""Expansion of plain prompts, against fake upstreams that check the requests they receive."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema_rs
import pytest

from server.captions.caption import Caption
from server.captions.schema import caption_schema, strict_schema, unconstrained
from server.integrations import Integrations
from server.magic_prompt.expander import Expander
from server.settings.config_error import ConfigError
from server.settings.settings import Settings
from server.upstream.client import UpstreamClients
from tests.server import sse
from tests.server.access.test_api_keys import bearer, write_keys
from tests.server.fake_upstream import (
    MISBEHAVIOURS,
    SECRET,
    Asked,
    FakeUpstream,
    Handler,
    drops,
    explodes,
    fails,
    hangs,
    held,
    is_json,
    says,
    upstream,
)
from tests.server.process import HANG, ServerProcess, small, until
from tests.server.routes.test_errors import check

Start = Callable[..., ServerProcess]
MODULE = "tests.server.prompt_server"
CAPTION = {
    "compositional_deconstruction": {
        "elements": [{"desc": "a wombat", "type": "obj"}],
        "background": "a meadow",
    }
}
TEXT = (
    '{"compositional_deconstruction":{"background":"a meadow","elements":[{"type":"obj","desc":"a wombat"}]}}'
)


FULL_SCHEMA = strict_schema(caption_schema())


def takes_ideogram(asked: Asked) -> bool:
    return (
        asked.path == "/?token=fake-address"
        and is_json(asked)
        and asked.headers["api-key"] == SECRET
        and asked.json.keys() == {"text_prompt", "aspect_ratio"}
    )


def takes_chat(asked: Asked) -> bool:
    body = asked.json
    schema = body["response_format"]["json_schema"]["schema"]
    jsonschema_rs.meta.validate(schema)
    return (
        asked.path == "/v1/chat/completions"
        and is_json(asked)
        and asked.headers["authorization"] == f"Bearer {SECRET}"
        and body["model"] == "a-model"
        and [message["role"] for message in body["messages"]] == ["system", "user"]
        and body["response_format"]["type"] == "json_schema"
        and body["response_format"]["json_schema"]["strict"] is True
        and schema in (FULL_SCHEMA, unconstrained(FULL_SCHEMA))
    )


def takes_webhook(asked: Asked) -> bool:
    known = asked.json.keys() == {"prompt", "width", "height", "aspect_ratio"}
    return known and is_json(asked) and asked.headers["authorization"] is None


@pytest.fixture(scope="module")
def ideogram() -> Iterator[FakeUpstream]:
    with upstream(takes_ideogram, {}) as fake:
        yield fake
        assert fake.wrong == []


@pytest.fixture(scope="module")
def flags(ideogram: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("magic")
    (folder / "key").write_text(SECRET + "\n")
    write_keys(
        folder / "keys.json",
        {"name": "web", "key": "web"},
        {"name": "free", "key": "free", "may_disable": ["magic_prompt"]},
    )
    return [
        *("--magic-prompt-backend", "ideogram", "--magic-prompt-url", ideogram.url + "/?token=fake-address"),
        *("--magic-prompt-key-file", str(folder / "key"), "--magic-prompt-seconds", "2"),
        *("--api-keys-file", str(folder / "keys.json")),
    ]


@pytest.fixture(scope="module")
def shared(flags: list[str]) -> Iterator[ServerProcess]:
    process = ServerProcess(*flags, module=MODULE)
    process.http.headers["Authorization"] = "Bearer web"
    yield process
    for place in (process.log, process.http.get("/metrics").text):
        assert SECRET not in place
        assert "wombat" not in place
        assert "meadow" not in place
        assert "fake-address" not in place
    process.close()


@pytest.fixture
def server(shared: ServerProcess, ideogram: FakeUpstream) -> ServerProcess:
    ideogram.reset({"json_prompt": CAPTION, "aspect_ratio": "1x1"})
    return shared


def drawn(server: ServerProcess) -> list[str]:
    texts: list[str] = server.http.get("/_fake/drawn").json()
    return texts


def test_the_expanded_caption_is_drawn_and_returned(server: ServerProcess, ideogram: FakeUpstream) -> None:
    response = server.create(prompt="a wombat 1", n=2, size="128x64")
    assert response.status_code == 200
    assert [image["revised_prompt"] for image in response.json()["data"]] == [TEXT, TEXT]
    assert "warnings" not in response.json()
    assert drawn(server)[-1] == TEXT
    assert [asked.json for asked in ideogram.asked] == [{"text_prompt": "a wombat 1", "aspect_ratio": "2x1"}]


def test_a_caption_is_cached_by_prompt_and_size(server: ServerProcess, ideogram: FakeUpstream) -> None:
    for size in ("64x64", "64x64", "64x128", "64x64"):
        assert server.create(prompt="a wombat 2", size=size).status_code == 200
    assert [asked.json["aspect_ratio"] for asked in ideogram.asked] == ["1x1", "1x2"]


def test_the_cache_evicts_the_least_recently_used() -> None:
    asked: list[str] = []

    class Service:
        async def expand(self, prompt: str, width: int, height: int) -> Caption:
            asked.append(prompt)
            return Caption.of(CAPTION)

    async def read(caption: Caption) -> tuple[int, ...]:
        return (1,)

    async def ask(prompts: str) -> None:
        expander = Expander(Service(), cache_entries=2)
        for prompt in prompts:
            await expander.expand((prompt, 64, 64), read)

    asyncio.run(ask("abacab"))
    assert "".join(asked) == "abcb"


def test_captions_are_never_expanded(server: ServerProcess, ideogram: FakeUpstream) -> None:
    for body in ({"json_prompt": CAPTION}, {"prompt": json.dumps(CAPTION)}):
        for choice in ("auto", "on"):
            response = server.create(**body, magic_prompt=choice)
            assert response.status_code == 200
            assert "revised_prompt" not in response.json()["data"][0]
    assert ideogram.asked == []


def test_a_prompt_is_expanded_without_an_image(server: ServerProcess, ideogram: FakeUpstream) -> None:
    before = len(drawn(server))
    response = server.http.post("/v1/captions/expand", json={"prompt": "a wombat 4", "size": "128x64"})
    assert response.status_code == 200
    assert response.json() == {"valid": True, "caption": json.loads(TEXT), "prompt": TEXT, "warnings": []}
    assert ideogram.asked[0].json == {"text_prompt": "a wombat 4", "aspect_ratio": "2x1"}
    assert server.create(prompt="a wombat 4", size="128x64").json()["data"][0]["revised_prompt"] == TEXT
    assert len(ideogram.asked) == 1, "the expansion is cached"
    assert len(drawn(server)) == before + 1


def test_an_expansion_that_fails_is_an_error(server: ServerProcess, ideogram: FakeUpstream) -> None:
    ideogram.next.extend([fails, fails])
    response = server.http.post("/v1/captions/expand", json={"prompt": "a wombat 5"})
    check(response, 503, "magic_prompt_unavailable", "magic_prompt")
    ideogram.next.append(hangs)
    headers = {"X-Request-Timeout": "0.2"}
    response = server.http.post("/v1/captions/expand", json={"prompt": "a wombat 6"}, headers=headers)
    check(response, 504, "deadline_exceeded")
    assert ideogram.hung_up.acquire(timeout=HANG), "the call is cancelled"


def test_the_model_lists_magic_prompt_as_a_feature(server: ServerProcess) -> None:
    assert server.http.get("/v1/models").json()["data"][0]["features"] == ["magic_prompt"]


def test_opting_out_requires_permission(server: ServerProcess, ideogram: FakeUpstream) -> None:
    check(server.create(prompt="a wombat", magic_prompt="off"), 403, "disabling_not_allowed", "magic_prompt")
    response = server.create(bearer("free"), prompt="a wombat", magic_prompt="off")
    assert "revised_prompt" not in response.json()["data"][0]
    assert drawn(server)[-1] == "a wombat"
    assert ideogram.asked == []


def test_the_returned_caption_is_validated_and_normalized(
    server: ServerProcess, ideogram: FakeUpstream
) -> None:
    element = {"desc": "x", "type": "obj", "bbox": [9, 9, 1, 1], "color_palette": ["#fff"]}
    answer = {"compositional_deconstruction": {"elements": [element], "background": "b"}}
    ideogram.answer = {"json_prompt": answer}
    response = server.create(prompt="a wombat 3").json()
    assert json.loads(response["data"][0]["revised_prompt"]) == {
        "compositional_deconstruction": {
            "background": "b",
            "elements": [{"type": "obj", "bbox": [9, 9, 1, 1], "desc": "x", "color_palette": ["#FFFFFF"]}],
        }
    }
    assert [warning["code"] for warning in response["warnings"]] == ["bbox_order"]


@pytest.mark.parametrize("how", MISBEHAVIOURS)
def test_a_failed_call_is_retried_once(server: ServerProcess, ideogram: FakeUpstream, how: str) -> None:
    ideogram.next.append(MISBEHAVIOURS[how])
    response = server.create(prompt=f"a wombat, {how}")
    assert response.json()["data"][0]["revised_prompt"] == TEXT
    assert len(ideogram.asked) == 2


@pytest.mark.parametrize("how", ["fails", "lies"])
def test_two_failures_fall_back_to_the_plain_prompt(
    server: ServerProcess, ideogram: FakeUpstream, how: str
) -> None:
    ideogram.next.extend([MISBEHAVIOURS[how]] * 2)
    response = server.create(prompt=f"a wombat that {how}")
    assert response.status_code == 200
    assert [warning["code"] for warning in response.json()["warnings"]] == ["magic_prompt_failed"]
    assert "revised_prompt" not in response.json()["data"][0]
    assert drawn(server)[-1] == f"a wombat that {how}"
    assert SECRET not in response.text
    ideogram.next.extend([MISBEHAVIOURS[how]] * 2)
    before = len(drawn(server))
    response = server.create(prompt=f"a wombat that {how}", magic_prompt="on")
    check(response, 503, "magic_prompt_unavailable", "magic_prompt")
    assert int(response.headers["retry-after"]) >= 1
    assert "wombat" not in response.text
    assert len(drawn(server)) == before
    # A failure is not cached.
    assert server.create(prompt=f"a wombat that {how}").json()["data"][0]["revised_prompt"] == TEXT


def test_two_timeouts_fall_back_to_the_plain_prompt(server: ServerProcess, ideogram: FakeUpstream) -> None:
    ideogram.next.extend([hangs] * 2)
    response = server.create(prompt="a wombat in silence")
    assert [warning["code"] for warning in response.json()["warnings"]] == ["magic_prompt_failed"]


def test_a_caption_with_too_many_tokens_is_a_failure(server: ServerProcess, ideogram: FakeUpstream) -> None:
    long = {"compositional_deconstruction": {"background": "x " * 3000, "elements": []}}
    ideogram.next.extend([says({"json_prompt": long})] * 2)
    response = server.create(prompt="a wombat 4")
    assert [warning["code"] for warning in response.json()["warnings"]] == ["magic_prompt_failed"]
    assert len(ideogram.asked) == 2
    # It is not cached either.
    assert server.create(prompt="a wombat 4").json()["data"][0]["revised_prompt"] == TEXT


def test_a_caption_that_is_too_long_after_normalization_is_a_failure(
    server: ServerProcess, ideogram: FakeUpstream
) -> None:
    """Numbers out of range do not grow."""
    element = {"type": "obj", "desc": "", "color_palette": ["#abc"] * 3900}
    long = {"compositional_deconstruction": {"background": "", "elements": [element]}}
    ideogram.next.extend([says({"json_prompt": long})] * 2)
    response = server.create(prompt="a wombat of many colours")
    assert [warning["code"] for warning in response.json()["warnings"]] == ["magic_prompt_failed"]
    element = {"type": "obj", "desc": "", "bbox": [1e308] * 1000}
    large = {"compositional_deconstruction": {"background": "", "elements": [element]}}
    ideogram.next.append(says({"json_prompt": large}))
    response = server.create(prompt="a wombat far away")
    assert len(response.json()["data"][0]["revised_prompt"]) < 10_000


def test_a_stream_starts_after_expansion(server: ServerProcess, ideogram: FakeUpstream) -> None:
    ideogram.next.extend([fails, fails])
    refused = server.create(prompt="a wombat 5", magic_prompt="on", stream=True)
    check(refused, 503, "magic_prompt_unavailable", "magic_prompt")
    (completed,) = sse.named(server.create(prompt="a wombat 5", stream=True).text.split("\n"))
    assert completed.data["revised_prompt"] == TEXT
    ideogram.next.extend([drops, drops])
    (completed,) = sse.named(server.create(prompt="a wombat 6", stream=True).text.split("\n"))
    assert [warning["code"] for warning in completed.data["warnings"]] == ["magic_prompt_failed"]


def test_an_idempotent_retry_does_not_call_the_upstream(
    server: ServerProcess, ideogram: FakeUpstream
) -> None:
    ideogram.next.append(held)
    key = {"Idempotency-Key": "expanded"}
    while ideogram.arrived.acquire(blocking=False):
        pass
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.create, key, prompt="a wombat 7")
        assert ideogram.arrived.acquire(timeout=30)
        second = pool.submit(server.create, key, prompt="a wombat 7")
        ideogram.release.set()
        assert first.result().json() == second.result().json()
    ideogram.release.clear()
    assert server.create(key, prompt="a wombat 7").json() == first.result().json()
    assert len(ideogram.asked) == 1


@pytest.fixture(scope="module")
def patient(flags: list[str]) -> Iterator[ServerProcess]:
    """Has a time limit that no test reaches."""
    process = ServerProcess(*flags, "--magic-prompt-seconds", "60", module=MODULE)
    process.set(seconds_per_step=0)
    yield process
    process.close()


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
def test_a_disconnect_cancels_the_call(patient: ServerProcess, ideogram: FakeUpstream, accept: str) -> None:
    ideogram.reset({"json_prompt": CAPTION})
    ideogram.next.append(hangs)
    aborts = patient.metric("ideoserve_aborts_total")
    while ideogram.arrived.acquire(blocking=False) or ideogram.hung_up.acquire(blocking=False):
        pass
    body = json.dumps(small(prompt="a wombat 8")).encode()
    head = (
        f"POST /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer web\r\nAccept: {accept}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", patient.port), timeout=30) as client:
        client.sendall(head.encode() + body)
        assert ideogram.arrived.acquire(timeout=30)
    assert ideogram.hung_up.acquire(timeout=30)
    until(lambda: patient.metric("ideoserve_aborts_total") == aborts + 1)
    assert drawn(patient) == []
    until(lambda: patient.metric("ideoserve_backlog_seconds") == 0)


def test_calls_count_against_the_deadline(patient: ServerProcess, ideogram: FakeUpstream) -> None:
    ideogram.reset({"json_prompt": CAPTION})
    ideogram.next.append(hangs)
    headers = bearer("web") | {"X-Request-Timeout": "0.3"}
    check(patient.create(headers, prompt="a wombat 9"), 504, "deadline_exceeded")
    assert drawn(patient) == []


def test_a_chat_model(start: Start) -> None:
    """An OpenAI-compatible chat completions endpoint, with the key from the environment."""
    answer = {"choices": [{"message": {"role": "assistant", "content": json.dumps(CAPTION)}}]}
    with upstream(takes_chat, answer) as fake:
        server = start(
            *("--magic-prompt-backend", "openai", "--magic-prompt-model", "a-model"),
            *("--magic-prompt-url", fake.url + "/v1/chat/completions"),
            module=MODULE,
            IDEOSERVE_MAGIC_PROMPT_KEY=SECRET,
        )
        response = server.create(prompt="a wombat", size="128x64")
        assert response.json()["data"][0]["revised_prompt"] == TEXT
        system, user = fake.asked[0].json["messages"]
        assert "2x1" in system["content"]
        assert user["content"] == "a wombat"
        refusal = {"choices": [{"message": {"content": None, "refusal": "no"}}]}
        prose = {"choices": [{"message": {"content": "Sure! Here is your caption."}}]}
        for lie in (refusal, prose):
            fake.next.extend([says(lie)] * 2)
            response = server.create(prompt=f"a wombat {lie}")
            assert response.json()["warnings"][0]["code"] == "magic_prompt_failed"
        fake.next.append(explodes)
        response = server.create(prompt="a wombat that explodes")
        assert response.json()["data"][0]["revised_prompt"] == TEXT
        assert fake.wrong == []
        assert (
            server.metric('ideoserve_backend_requests_total{backend="magic_prompt",outcome="invalid"}') == 5
        )


def chat(content: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


@pytest.fixture(scope="module")
def model() -> Iterator[FakeUpstream]:
    with upstream(takes_chat, chat(json.dumps(CAPTION))) as fake:
        yield fake
        assert fake.wrong == []


@pytest.fixture(scope="module")
def chatting(model: FakeUpstream) -> Iterator[ServerProcess]:
    process = ServerProcess(
        *("--magic-prompt-backend", "openai", "--magic-prompt-model", "a-model"),
        *("--magic-prompt-url", model.url + "/v1/chat/completions", "--magic-prompt-cache", "0"),
        module=MODULE,
        IDEOSERVE_MAGIC_PROMPT_KEY=SECRET,
    )
    yield process
    process.close()


@pytest.mark.parametrize(
    "content",
    [
        f"```json\n{json.dumps(CAPTION)}\n```",
        f"<think>A caption {{}} of a wombat.</think>\n\n{json.dumps(CAPTION)}",
        f"Here is the caption:\n```\n{json.dumps(CAPTION)}\n```",
        [{"type": "text", "text": json.dumps(CAPTION)}],
        [{"type": "reasoning"}, {"type": "text", "text": "```json\n"}, {"type": "text", "text": TEXT}],
        json.dumps(json.dumps(CAPTION)),
        json.dumps([CAPTION]),
    ],
    ids=range(7),
)
def test_a_caption_in_a_chat_models_wrapping(
    chatting: ServerProcess, model: FakeUpstream, content: Any
) -> None:
    model.reset(chat(content))
    response = chatting.create(prompt="a wombat", magic_prompt="on")
    assert (response.status_code, len(model.asked)) == (200, 1)
    assert response.json()["data"][0]["revised_prompt"] == TEXT


def refuses_the_schema(handler: Handler) -> None:
    handler.reply({"error": {"message": "Invalid schema: 'pattern' is not permitted."}}, status=400)


def test_a_schema_that_is_refused_is_sent_without_constraints(start: Start, model: FakeUpstream) -> None:
    """The second attempt passes, and later requests send the accepted schema at once."""
    model.reset(chat(json.dumps(CAPTION)))
    model.next.append(refuses_the_schema)
    flags = (
        "--magic-prompt-backend",
        "openai",
        "--magic-prompt-model",
        "a-model",
        "--magic-prompt-cache",
        "0",
    )
    url = ("--magic-prompt-url", model.url + "/v1/chat/completions")
    server = start(*flags, *url, module=MODULE, IDEOSERVE_MAGIC_PROMPT_KEY=SECRET)
    for _ in range(2):
        assert server.create(prompt="a wombat", magic_prompt="on").status_code == 200
    sent = [asked.json["response_format"]["json_schema"]["schema"] for asked in model.asked]
    assert sent == [FULL_SCHEMA, unconstrained(FULL_SCHEMA), unconstrained(FULL_SCHEMA)]
    text = json.dumps(sent[1])
    assert not any(f'"{name}"' in text for name in ("pattern", "minimum", "maximum", "minItems", "maxItems"))


def test_a_webhook(start: Start) -> None:
    with upstream(takes_webhook, {"json_prompt": CAPTION}) as fake:
        flags = ("--magic-prompt-backend", "webhook", "--magic-prompt-url", fake.url, "--log-prompts")
        server = start(*flags, "--magic-prompt-cache", "0", "--embed-prompt", module=MODULE)
        fake.next.append(explodes)
        for _ in range(2):
            response = server.create(prompt="a wombat", size="128x64")
            assert response.json()["data"][0]["revised_prompt"] == TEXT
        asked: list[Any] = [asked.json for asked in fake.asked]
        assert asked == [{"prompt": "a wombat", "width": 128, "height": 64, "aspect_ratio": "2x1"}] * 3
        # Logged with --log-prompts.
        assert server.logged(prompt="a wombat", revised_prompt=TEXT)
        # A server without keys allows the opt-out: magic prompt is no safety measure.
        response = server.create(prompt="a wombat", magic_prompt="off")
        assert "revised_prompt" not in response.json()["data"][0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backend": "ideogram"}, "--magic-prompt-key-file or IDEOSERVE_MAGIC_PROMPT_KEY is required"),
        ({"backend": "webhook"}, "--magic-prompt-url or IDEOSERVE_MAGIC_PROMPT_URL is required"),
        ({"backend": "openai", "url": "http://x"}, "--magic-prompt-model or IDEOSERVE_MAGIC_PROMPT_MODEL"),
        ({"backend": "ideogram", "key_file": "/"}, "--magic-prompt-key-file: the file cannot be read"),
    ],
)
def test_incomplete_settings(given: dict[str, Any], said: str) -> None:
    settings = Settings(model="fake", **{f"magic_prompt_{name}": value for name, value in given.items()})
    with pytest.raises(ConfigError, match=f"^{said}"):
        Integrations(settings, UpstreamClients(lambda *_: None), "fake")


def test_incomplete_settings_end_the_process_with_one_line(start: Start) -> None:
    with pytest.raises(RuntimeError) as failure:
        start("--magic-prompt-backend", "ideogram")
    said = "ideoserve: --magic-prompt-key-file or IDEOSERVE_MAGIC_PROMPT_KEY is required\n"
    assert str(failure.value) == f"the server did not start: {said}"
