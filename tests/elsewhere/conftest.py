"""Replicas for tests, stopped again whatever happens."""

import signal

import pytest

from fleet import Replica


@pytest.fixture
def replicas():
    """Starts a replica with the given flags; all must end with 0."""
    started = []

    def start(*flags):
        started.append(Replica(*flags).start())
        return started[-1].wait_ready()

    yield start
    # Their delays are waited for at once.
    for replica in started:
        replica.process.child.send_signal(signal.SIGTERM)
    for replica in started:
        code = replica.process.child.wait(timeout=40)
        assert code == 0, f"exit code {code} after SIGTERM: {replica.process.output()}"
