from collections.abc import Iterator

import pytest

from tests.server.process import ServerProcess, until


@pytest.fixture(scope="package")
def demo() -> Iterator[ServerProcess]:
    """A real server with the demo model."""
    server = ServerProcess(
        *("--model", "models/demo", "--adapters", "models/adapters", "--log-level", "error"), module="server"
    )
    until(lambda: server.http.get("/readyz").status_code == 200)
    yield server
    server.close()
