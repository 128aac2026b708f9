"""Measures the coverage of every Python process that a test starts, the sandboxed workers included.

On PYTHONPATH only while tests.run runs. A worker can open no file once its sandbox is closed, so the file is opened
here, before anything else, and what was measured is written to it at the end. Nothing of this is in the product.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import secrets

directory = os.environ.get("QRE_COVERAGE_DIR")
#: A process of another uid, as some tests start them, may not write there.
if directory and os.access(directory, os.W_OK):
    import coverage

    # Whatever serialising imports is imported now.
    coverage.CoverageData(no_disk=True).dumps()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    opened = os.open(f"{directory}/{os.getpid()}-{secrets.token_hex(4)}", flags, 0o600)
    descriptor = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 10)  # a process may begin without standard streams
    os.close(opened)
    measured = coverage.Coverage(data_file=None, config_file=False, source_pkgs=["qre"], messages=False)
    measured.set_option("run:disable_warnings", ["module-not-imported", "no-data-collected", "module-not-measured"])
    measured.start()

    def save() -> None:
        """Write what was measured, as coverage's own serialised form."""
        measured.stop()
        data = measured.get_data().dumps()
        while data:
            data = data[os.write(descriptor, data) :]

    atexit.register(save)
