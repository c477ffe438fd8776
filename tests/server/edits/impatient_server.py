"""`python -m tests.server.edits.impatient_server FLAGS`: its decoders may use a processor for a second."""

import sys

from server.edits import decoders
from tests.server.fake_server import main

if __name__ == "__main__":
    decoders.PROCESSOR_SECONDS = 0
    sys.exit(main())
