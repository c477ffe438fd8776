"""Stored images: files in a folder or bucket behind URLs that expire."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from server.settings.config_error import ConfigError
from server.settings.secrets import read_secret
from server.settings.settings import Settings
from server.store.folder_store import FolderStore
from server.store.links import Links
from server.store.results import Listener, Results
from server.store.store import Store

if TYPE_CHECKING:  # imported only if a queue is set
    from server.queue.connection.broker import Broker

FOLDER = re.compile(r"file://(/.*)")
BUCKET = re.compile(r"(s3|gs|az)://[A-Za-z0-9._-]+(/[^?#\s]*)?")
MIN_SECRET_CHARACTERS = 32


def from_settings(settings: Settings, listener: Listener, broker: "Broker | None" = None) -> Results | None:
    """The store of `--store`, else the broker. None without both, and for a worker, which answers no
    requests. Raises ConfigError."""
    if settings.role == "worker" or (settings.store is None and broker is None):
        return None
    now = time.time if broker is None else broker.clock.now
    store, links = _store(settings, broker, now)
    seconds, base = settings.url_ttl_seconds, settings.public_url
    return Results(store, links, now, seconds, base, settings.store_sweep, listener)


def _store(
    settings: Settings, broker: "Broker | None", now: Callable[[], float]
) -> tuple[Store, Links | None]:
    """With what signs the URLs, if this server serves the files. `now` is the clock of all servers."""
    if settings.store is None and broker is not None:
        from server.store.broker_store import BrokerStore  # needs the extra queue

        links = Links(_secret(settings), now)
        age = max(settings.job_ttl_seconds, settings.url_ttl_seconds)
        return BrokerStore(broker, links, age, settings.max_store_bytes), links
    folder = FOLDER.fullmatch(settings.store or "")
    if folder is None:
        return _bucket(settings.store or "", now), None
    links = Links(_secret(settings), now)
    return FolderStore(Path(folder[1]), links, settings.max_store_bytes), links


def _bucket(url: str, now: Callable[[], float]) -> Store:
    if not BUCKET.fullmatch(url):
        raise ConfigError(
            "--store: must be file:///FOLDER, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or "
            "az://CONTAINER[/PREFIX]"
        )
    try:
        from server.store.bucket_store import BucketStore  # an optional extra
    except ImportError:
        raise ConfigError("--store: buckets need the extra store: pip install ideoserve[store]") from None
    return BucketStore(url, now)


def _secret(settings: Settings) -> bytes | None:
    flag = "--url-secret-file"
    secret = read_secret(flag, settings.url_secret_file, settings.url_secret)
    if secret is None:
        return None
    text = secret.get_secret_value()
    if len(text) < MIN_SECRET_CHARACTERS:
        raise ConfigError(f"{flag}: the secret must have at least {MIN_SECRET_CHARACTERS} characters")
    return text.encode()
