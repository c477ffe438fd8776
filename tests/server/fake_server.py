"""`python -m tests.server.fake_server FLAGS`: the real server process over the fake engine.

`/_fake/...` lets a test see the engine and steer it without guessing at times.
"""

import sys

from server.serving import serve
from server.settings import read_settings
from tests.server.fake_engine import FakeEngine


def main() -> int:
    engine = FakeEngine()
    return serve(read_settings(["--model", "fake", *sys.argv[1:]]), engine)


if __name__ == "__main__":
    sys.exit(main())
