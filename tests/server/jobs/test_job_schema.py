"""The OpenAPI document of a server with jobs."""

from pathlib import Path

from tests.server.jobs.job_client import JobClient
from tests.server.process import ServerProcess
from tests.server.routes.test_schema import run_schemathesis


def test_schemathesis(jobs: JobClient, tmp_path: Path) -> None:
    """Without the body of a job, which is that of an image request."""
    paths, others = "--include-path-regex=^/v1/jobs", "--exclude-operation-id=create_job"
    run = run_schemathesis(jobs.server, tmp_path, paths, others, "--max-examples=10")
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
    assert not jobs.server.log_lines(level="error")


def test_jobs_are_described_where_there_are_jobs(jobs: JobClient, server: ServerProcess) -> None:
    document = jobs.server.http.get("/openapi.json").json()
    properties = document["components"]["schemas"]["JobRequest"]["properties"]
    assert {"prompt", "steps", "webhook", "metadata"} <= properties.keys()
    assert properties["n"]["anyOf"][0]["maximum"] == 10
    assert "202" in document["paths"]["/v1/images"]["post"]["responses"]
    without = server.http.get("/openapi.json").json()
    assert [path for path in without["paths"] if "job" in path] == []
    assert document["paths"].keys() - without["paths"].keys() == {
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/images/{index}",
    }
