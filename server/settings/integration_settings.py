"""Settings of magic prompt, moderation, content credentials, webhooks and stored images."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from server.settings.http_settings import Seconds

MAX_URL_SECONDS = 7 * 86_400  # the longest that S3 and Google Cloud Storage sign


class IntegrationSettings(BaseModel):
    """All optional."""

    magic_prompt_backend: Literal["ideogram", "openai", "webhook"] | None = Field(
        None, description="Service that expands plain prompts into captions; if unset, none"
    )
    magic_prompt_url: str | None = Field(
        None,
        description="URL of that service: a chat completions endpoint (openai) or your webhook; "
        "if unset, Ideogram's public API (ideogram)",
    )
    magic_prompt_model: str | None = Field(None, description="Chat model to request (openai)")
    magic_prompt_key_file: Path | None = Field(None, description="File with the API key of that service")
    magic_prompt_key: SecretStr | None = Field(None, description="API key of the magic prompt service")
    magic_prompt_seconds: Seconds = Field(
        15, description="Timeout of each of at most two attempts to expand a prompt, in seconds"
    )
    magic_prompt_cache: int = Field(
        1024, ge=0, le=1_000_000, description="Expanded prompts to keep, in entries"
    )

    prompt_moderation: str | None = Field(
        None,
        description="Comma-separated prompt moderators, tried in order: deny-list, hive, webhook; "
        "if unset, prompts are not moderated",
    )
    image_moderation: str | None = Field(
        None,
        description="Comma-separated image moderators, tried in order: hive, webhook; "
        "if unset, images are not moderated",
    )
    moderation_failure: Literal["closed", "open"] = Field(
        "closed", description="If a moderator fails: refuse the request (closed) or let it pass (open)"
    )
    moderation_seconds: Seconds = Field(10, description="Timeout of a moderator, in seconds")
    moderated_previews: bool = Field(
        False, description="Send previews, which are not moderated, even if images are moderated"
    )
    deny_list_file: Path | None = Field(
        None,
        description="File of denied words and phrases, one per line, reloaded when it changes (deny-list)",
    )
    hive_url: str = Field("https://api.thehive.ai/api/v3/hive", description="URL of the Hive API")
    hive_key_file: Path | None = Field(None, description="File with the API key of Hive")
    hive_key: SecretStr | None = Field(None, description="API key of Hive")
    hive_text_severity: int = Field(1, ge=1, le=3, description="Minimum severity that refuses a prompt")
    hive_image_score: float = Field(0.9, gt=0, le=1, description="Minimum score that refuses an image")
    hive_ignore: str = Field(
        "animated,hybrid,natural,text,yes_drawing,yes_overlay_text,yes_qr_code",
        description="Comma-separated Hive classes that never refuse an image",
    )
    moderation_webhook_url: str | None = Field(None, description="URL of your moderation service (webhook)")
    moderation_webhook_key_file: Path | None = Field(None, description="File with its bearer token")
    moderation_webhook_key: SecretStr | None = Field(
        None, description="Bearer token of your moderation service"
    )

    c2pa_certificate_file: Path | None = Field(
        None,
        description="PEM certificate chain that signs images; if unset, images are not signed; "
        "needs the extra c2pa",
    )
    c2pa_key_file: Path | None = Field(None, description="PEM private key of the first certificate")
    c2pa_key: SecretStr | None = Field(None, description="PEM private key of the first certificate")

    webhook_hosts: str | None = Field(
        None,
        description="Comma-separated hosts that webhooks of jobs may be sent to, each [http://]HOST[:PORT] "
        "with an exact host or *.SUFFIX; https and its port unless given; if unset, webhooks are refused",
    )
    webhook_allow_private: bool = Field(
        False, description="Send webhooks also to allowed hosts with private or loopback addresses"
    )
    webhook_secret_file: Path | None = Field(
        None,
        description="File with the secrets that sign webhooks, separated by white space, each whsec_ and the "
        "base64 of 24 to 64 bytes; required with webhook_hosts",
    )
    webhook_secret: SecretStr | None = Field(None, description="Secrets that sign webhooks")

    store: str | None = Field(
        None,
        description="Where images are stored for response_format url: file:///FOLDER, s3://BUCKET[/PREFIX], "
        "gs://BUCKET[/PREFIX] or az://CONTAINER[/PREFIX]; buckets need the extra store; also the images "
        "of jobs. If unset, with queue the NATS servers store them, else url is refused",
    )
    url_ttl_seconds: int = Field(
        3600,
        ge=1,
        le=MAX_URL_SECONDS,
        description="Time after which a URL expires and its image is deleted, in seconds",
    )
    public_url: str | None = Field(
        None,
        description="Base of the URLs that this server serves, such as https://images.example.com; if unset, "
        "the scheme and Host of each request",
    )
    url_secret_file: Path | None = Field(
        None,
        description="File with the secret that signs the URLs that this server serves, at least 32 "
        "characters, the same on all replicas; if unset, a random one, whose URLs end with the process, or "
        "with the NATS servers if they store the images",
    )
    url_secret: SecretStr | None = Field(
        None, description="Secret that signs the URLs that this server serves, at least 32 characters"
    )
    max_store_bytes: int = Field(
        10 << 30,
        ge=1 << 20,
        le=1 << 50,
        description="Maximum size of the stored images in a folder or on the NATS servers, in bytes; above "
        "it requests for URLs get 503",
    )
    store_sweep: bool = Field(
        True,
        description="Delete expired images: in a folder every minute, in a bucket every hour; turn it off "
        "if a lifecycle rule of the bucket does",
    )
