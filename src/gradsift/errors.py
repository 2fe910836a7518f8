"""What the user can mend, as one class; anything else is a mistake of gradsift's own."""


class GradsiftError(ValueError):
    """Something the user can mend: what was found, what was expected, what to do.

    Settings stand in backticks, as they are named in Python and YAML: `max_length`. The command
    line shows them as its options: --max-length.
    """
