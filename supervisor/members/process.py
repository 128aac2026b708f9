"""Fresh interpreters for the supervisor and its workers: multiprocessing's spawn, without its resource tracker.

Stock ``spawn`` starts a tracker process that would live on with all privileges, and runs the parent's main module
again in the child. Here a child gets its target, its arguments (pickled by us, for it) and the descriptors among
them; nothing else is inherited.
"""

from __future__ import annotations

import io
import os
from multiprocessing import context, popen_spawn_posix, reduction, spawn, util
from multiprocessing.process import BaseProcess


class _Popen(popen_spawn_posix.Popen):
    """As stock's, but ``tracker_fd`` is /dev/null: resources are not tracked."""

    _fds: list[int]  # stock's: descriptors that ``duplicate_for_child`` collected while the arguments were pickled

    def _launch(self, process_obj: BaseProcess) -> None:
        preparation = spawn.get_preparation_data(process_obj.name)
        for key in ("init_main_from_path", "init_main_from_name"):
            preparation.pop(key, None)
        data = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, data)
            reduction.dump(process_obj, data)
        finally:
            context.set_spawning_popen(None)
        tracker = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        sentinel, child_write = os.pipe()
        child_read, write = os.pipe()
        try:
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_read)
            fds = [*self._fds, tracker, child_read, child_write]
            self.pid = util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, fds)
            self.sentinel = sentinel
            with open(write, "wb", closefd=False) as file:
                file.write(data.getbuffer())
        finally:
            for fd in (tracker, child_write, child_read, write):
                os.close(fd)
            self.finalizer = util.Finalize(self, os.close, (sentinel,))


class FreshProcess(context.SpawnProcess):
    """A process started by ``_Popen``."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> _Popen:
        return _Popen(process_obj)
