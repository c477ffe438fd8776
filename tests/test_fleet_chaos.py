"""Requests and jobs of a real fleet while its processes are killed and stopped."""

from tests import fleet_chaos


def test_every_accepted_request_and_job_gets_the_right_pixels() -> None:
    """Jobs are completed once and announced with one id; nothing is left in streams, and no process."""
    with fleet_chaos.fleet(num_workers=2) as fleet:
        fleet_chaos.torment(fleet, num_requests=20, num_jobs=6, seed=4)
        fleet.close()
