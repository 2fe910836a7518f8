"""The program `gradsift`, and `python -m gradsift`."""


def main() -> None:
    """Run the command line, which can be interrupted from here on: imports take seconds."""
    from gradsift.cli import interrupts

    interrupts.listen()
    from gradsift.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
