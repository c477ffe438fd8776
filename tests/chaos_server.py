"""`python -m tests.chaos_server FLAGS`: the real server and engine, with a hang timeout of 3 seconds."""

import sys
from pathlib import Path

from engine.client.engine_client import EngineClient
from engine.config.model_config import ModelConfig
from engine.config.options import EngineOptions
from server.app import create_app, run
from server.settings.settings import read_settings
from server.transport.server import listen
from tests import chaos_worker

if __name__ == "__main__":
    settings = read_settings(sys.argv[1:])
    options = EngineOptions(settings.device_list or ("cpu",), dtype="float32", hang_seconds=3.0)
    engine = EngineClient(ModelConfig.load(Path(settings.model)), options, chaos_worker.main)
    sys.exit(run(create_app(settings, engine), listen(settings)))
