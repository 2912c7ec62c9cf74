"""The last module that a fork server imports before it serves, and the only one to import it.

The server begins with Ctrl-C and SIGTERM blocked, and stays so: they may reach all processes of a terminal or of a
cluster's job, and only the process that began may say what they mean. What the server forks, for a stream or for
others, leaves Ctrl-C to that process, too, and can be ended by SIGTERM; a stream's and the loader's workers ignore both
as soon as they run.
"""

import os
import signal

from shards.streaming.processes import STOPS

# As the server finds it, it hands it on.
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS))
