"""SIGKILL of services and of their PostgreSQL at random moments under load: nothing answered is lost or mixed up."""

import contextlib
import os
import signal
import sys
import time

import numpy as np

from service.commands.process import running_service
from tests.chaos.load import Load
from tests.postgres import postgres

KILLS = int(os.environ.get("HEADWAY_KILLS", "6"))
"""Every fourth is of PostgreSQL. docs/deployment.md has what came of more."""


KILLS_A_CHECK = 20


class Replica:
    """A service that is started again after it was killed."""

    def __init__(self, models, url):
        self._models, self._store, self._stack = models, url, contextlib.ExitStack()
        self.url = ""

    def start(self):
        self._stack = contextlib.ExitStack()
        service = self._stack.enter_context(running_service(self._models, self._store, "--frontends", "1"))
        self.url, self._pid = service.url, service.pid

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)
        self.stop()

    def stop(self):
        self._stack.close()


def test_nothing_is_lost_or_mixed_up(tiny_models):
    rng = np.random.default_rng(11)
    with postgres() as server, contextlib.ExitStack() as stack:
        url = server.database()
        replicas = [Replica(tiny_models, url) for _ in range(2)]
        for replica in replicas:
            replica.start()
            stack.callback(replica.stop)
        load = Load(lambda: [replica.url for replica in replicas], users=6, seed=12)
        for begin in range(0, KILLS, KILLS_A_CHECK):
            with load.running():
                for kill in range(begin, min(KILLS, begin + KILLS_A_CHECK)):
                    time.sleep(rng.uniform(0.05, 0.6))
                    victim = server if kill % 4 == 3 else replicas[int(rng.integers(2))]
                    victim.kill()
                    time.sleep(rng.uniform(0, 0.2))
                    victim.start()
            versions = [load.check(replica.url) for replica in replicas]
            assert versions[0] == versions[1]
        acknowledged = sum(map(len, load.acknowledged.values()))
        sys.stdout.write(
            f"{KILLS} kills: {acknowledged} calibrations acknowledged, {versions[0]} stored, "
            f"{len(load.answered)} predictions checked, {load.refused} refused, {load.cut_off} cut off\n"
        )
        assert acknowledged > KILLS
        assert len(load.answered) > KILLS
