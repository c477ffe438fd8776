"""The demo adapter over HTTP, beside requests without it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from tests.models.test_adapter import WANTED, solidity
from tests.models.test_meaning import draw
from tests.server.process import ServerProcess

OUTLINED: dict[str, Any] = {"adapters": [{"name": "outlined"}]}


def test_each_request_chooses_its_adapter(demo: ServerProcess) -> None:
    """Sent at once, so that both kinds share batches; then one alone."""

    def drawn(wanted: tuple[str, str, str], parameters: dict[str, Any]) -> Image.Image:
        colour, shape, background = wanted
        return draw(demo, f"a {colour} {shape} on a {background} background", seed=3, **parameters)

    with ThreadPoolExecutor() as pool:
        plain = [pool.submit(drawn, wanted, {}) for wanted in WANTED]
        outlined = [pool.submit(drawn, wanted, OUTLINED) for wanted in WANTED]
    assert min(solidity(each.result()) for each in plain) > 0.95
    assert max(solidity(each.result()) for each in outlined) < 0.85
    model = demo.http.get("/v1/models").json()["data"][-1]
    assert model["adapter"] == "outlined"
    assert drawn(WANTED[0], {"model": model["id"]}) == outlined[0].result()
    assert demo.http.get("/v1/adapters").json()["data"][0]["rank"] == 6
