"""Ctrl-C and its like: one line that says what is kept, and out, whatever the process is doing.

Everything that gradsift writes is whole or absent (temporary file, fsync, rename), so leaving at
once loses no more than a kill would. An exception in the main thread would not do instead: Click
and other libraries swallow it, and a long operation in C++ or an import holds it up for seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

from gradsift.progress import is_first_process

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP.
# Of any command: it may have been at nothing that is kept, or be resumed.
STOPPED = "stopped; nothing on the disk is harmed, run the same command again"
ENDING = "stopped; the command was done"
# A terminal that was halted (Ctrl-S) or a full pipe must not hold the process.
SECONDS_TO_SPEAK = 0.5
SHOW_CURSOR = "\x1b[?25h"

_stopping = threading.Lock()
_display: object = None
_done = False


def listen() -> None:
    """End the process at once on a signal, from now on; those that it ignores stay ignored.

    For the command line only: Python callers see KeyboardInterrupt, as ever.
    """
    numbers = {getattr(signal, name) for name in NAMES if hasattr(signal, name)}
    # nohup ignores SIGHUP, and a shell SIGINT for what runs in the background.
    numbers = {number for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in numbers:
        signal.signal(number, lambda signum, _: _stop(signum))
    _open_standard_streams()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # A byte comes out of it as soon as there is a signal, whatever the main thread is busy with.
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # It does what the handlers do; they come late, but stay if a library takes the wakeup away.
    threading.Thread(target=_watch, args=(reader, writer, numbers), daemon=True).start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _forget(numbers))


def _open_standard_streams() -> None:
    """Open what is closed (2>&-): the next file would get its number, and all that is said."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def show_with(display: object) -> None:
    """Say with the help of this `console.Display` how far the command is, if it is stopped."""
    global _display
    _display = display


def ended() -> None:
    """Note that the command has done what it had to do; Python still has to end."""
    global _done
    _done = True


def _watch(reader: socket.socket, _writer: socket.socket, numbers: set[int]) -> None:
    while signals := reader.recv(64):
        for number in signals:
            if number in numbers:
                _stop(number)


def _stop(number: int) -> None:
    if _stopping.acquire(blocking=False):
        # Whoever speaks may be held up; then it ends all the same.
        speaker = threading.Thread(target=_speak, daemon=True)
        speaker.start()
        speaker.join(SECONDS_TO_SPEAK)
    else:  # The same signal, in the other thread; or one more.
        time.sleep(SECONDS_TO_SPEAK)
    if hasattr(os, "getpgrp") and os.getpgrp() != os.getpid():
        _die_of(number)
    os._exit(128 + number)


def _die_of(number: int) -> None:
    """Die of the signal itself, if the C library lets us; a shell shows 128 + number, too.

    A script's shell gets the same Ctrl-C. It goes on with its next command where this one exits
    with a code, which may be its answer, and stops where it dies of the signal. An interactive
    shell puts each command into a process group of its own and needs no such hint.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        # Not signal.signal: it works in the main thread only, which may be busy in C.
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(number, None)  # SIG_DFL
        os.kill(os.getpid(), number)
        time.sleep(SECONDS_TO_SPEAK)


def _speak() -> None:
    if not is_first_process():
        return
    line = ENDING if _done else STOPPED
    before = ""
    if hasattr(_display, "stopped"):
        line = line if _done else _display.stopped() or line
        before = f"\n{SHOW_CURSOR}" if _display.hides_cursor else ""
    if not before and os.isatty(2):
        before = "\n"  # The terminal has written ^C.
    with contextlib.suppress(OSError):  # The terminal is gone.
        # Not sys.stderr: it may be redirected, closed, or locked by whoever was interrupted.
        os.write(2, f"{before}gradsift: {line}\n".encode())


def _forget(numbers: set[int]) -> None:
    """Let a forked process (a worker) end as processes do: its signals are not the command's."""
    signal.set_wakeup_fd(-1)
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
