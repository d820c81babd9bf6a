"""Replicas for tests, stopped again whatever happens."""

import contextlib

import pytest

from fleet import Replica


@pytest.fixture
def replicas():
    """Starts replicas by name of their flags; all must end with 0."""
    with contextlib.ExitStack() as stack:

        def start(*flags, **options):
            replica = Replica(*flags, **options).start()
            stack.callback(replica.stop)
            return replica.wait_ready()

        yield start
