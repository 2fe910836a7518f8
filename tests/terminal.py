"""A real terminal (a pty) for tests: what a person sees, and what a key does."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time


def heed_signals():
    """Undo what tests that run in the background inherit: SIGINT, and perhaps SIGHUP, ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def in_terminal(
    arguments,
    *,
    program=sys.executable,
    at=None,
    number=signal.SIGINT,
    columns=80,
    timeout=120,
    **environment,
):
    """Run Python, or another program, in a terminal; return exit code, seconds, what it shows.

    As soon as the regular expression `at` is shown, Ctrl-C is typed, or the signal `number` sent;
    the seconds are from there (None without) to the end.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        heed_signals()
        os.environ.update(environment, COLUMNS=str(columns))
        os.execvpe(program, [program, *map(str, arguments)], os.environ)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown, sent, deadline = b"", None, time.monotonic() + timeout
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                got = os.read(terminal, 65536)
            except OSError:
                got = b""
            if not got:
                break
            shown += got
        if sent is None and at is not None and re.search(at, shown.decode(errors="replace")):
            sent = time.monotonic()
            if number == signal.SIGINT:
                os.write(terminal, b"\x03")
            else:
                os.kill(pid, number)
    else:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = None if sent is None else time.monotonic() - sent
    os.close(terminal)
    # Raw bytes that are no UTF-8 stay visible.
    return code, seconds, shown.decode(errors="surrogateescape").replace("\r\n", "\n")


def gradsift(*arguments, **options):
    """Run gradsift in a terminal; see `in_terminal`."""
    return in_terminal(["-m", "gradsift", *arguments], **options)
