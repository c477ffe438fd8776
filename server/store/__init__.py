"""Stored images: files in a folder or bucket behind URLs that expire."""

import re
from pathlib import Path

from server.settings.config_error import ConfigError
from server.settings.secrets import read_secret
from server.settings.settings import Settings
from server.store.folder_store import FolderStore
from server.store.links import Links
from server.store.results import Listener, Results
from server.store.store import Store

FOLDER = re.compile(r"file://(/.*)")
BUCKET = re.compile(r"(s3|gs|az)://[A-Za-z0-9._-]+(/[^?#\s]*)?")
MIN_SECRET_CHARACTERS = 32


def from_settings(settings: Settings, listener: Listener) -> Results | None:
    """None without `--store`, and for a worker, which answers no requests. Raises ConfigError."""
    if settings.store is None or settings.role == "worker":
        return None
    folder, links = FOLDER.fullmatch(settings.store), None
    store: Store
    if folder:
        links = Links(_secret(settings))
        store = FolderStore(Path(folder[1]), links, settings.max_store_bytes)
    else:
        store = _bucket(settings.store)
    seconds, base = settings.url_ttl_seconds, settings.public_url
    return Results(store, links, seconds, base, settings.store_sweep, listener)


def _bucket(url: str) -> Store:
    if not BUCKET.fullmatch(url):
        raise ConfigError(
            "--store: must be file:///FOLDER, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or "
            "az://CONTAINER[/PREFIX]"
        )
    try:
        from server.store.bucket_store import BucketStore  # an optional extra
    except ImportError:
        raise ConfigError("--store: buckets need the extra store: pip install ideoserve[store]") from None
    return BucketStore(url)


def _secret(settings: Settings) -> bytes | None:
    flag = "--url-secret-file"
    secret = read_secret(flag, settings.url_secret_file, settings.url_secret)
    if secret is None:
        return None
    text = secret.get_secret_value()
    if len(text) < MIN_SECRET_CHARACTERS:
        raise ConfigError(f"{flag}: the secret must have at least {MIN_SECRET_CHARACTERS} characters")
    return text.encode()
