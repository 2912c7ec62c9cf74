"""What ends frozen workers ends nothing else; the rest is proved on a real cluster in `test_cluster`."""

import subprocess
import sys

import pytest

from ingest.watch import _kill


def test_workers_alone_are_killed():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        _kill(process.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        process.wait()
    _kill(process.pid)  # nobody has this number any more
