"""A client of `/v1/jobs`."""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.server import sse
from tests.server.process import ServerProcess, small

Json = dict[str, Any]


@dataclass(frozen=True)
class JobClient:
    server: ServerProcess

    def post(self, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.server.http.post("/v1/jobs", json=small(**body), headers=headers)

    def create(self, headers: dict[str, str] | None = None, **body: Any) -> Json:
        response = self.post(headers, **body)
        assert response.status_code == 202, response.text
        return response.json()

    def get(self, job: Json | str) -> Json:
        response = self.server.http.get(f"/v1/jobs/{_id(job)}")
        assert response.status_code == 200, response.text
        return response.json()

    def page(self, **query: Any) -> Json:
        response = self.server.http.get("/v1/jobs", params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def delete(self, job: Json | str) -> httpx.Response:
        return self.server.http.delete(f"/v1/jobs/{_id(job)}")

    def events(self, job: Json | str, **headers: str) -> list[sse.Event]:
        """All, once the job has ended."""
        response = self.server.http.get(f"/v1/jobs/{_id(job)}/events", headers=headers)
        assert response.status_code == 200, response.text
        return sse.named(response.text.splitlines())

    def ended(self, job: Json | str) -> Json:
        """The job, once it has ended."""
        last = self.events(job)[-1]
        assert last.name.startswith("job."), last
        return self.get(job)

    def image(self, job: Json | str, index: int) -> bytes:
        response = self.server.http.get(f"/v1/jobs/{_id(job)}/images/{index}")
        assert response.status_code == 200, response.text
        return response.content


def _id(job: Json | str) -> str:
    return job if isinstance(job, str) else str(job["id"])
