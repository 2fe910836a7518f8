"""`python -m gradsift`."""

from gradsift.cli.main import main

main()
