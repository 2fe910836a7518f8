"""The program `gradsift`, and `python -m gradsift`."""

import signal


def main() -> None:
    """Run the command line, which can be interrupted from here on: imports take seconds."""
    # For the hundredth of a second until something better listens: no traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gradsift.cli import interrupts

    interrupts.listen()
    from gradsift.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
