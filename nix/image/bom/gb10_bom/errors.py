"""What a caller has to mend."""


class BomError(Exception):
    """One line that says what is wrong: the program prints it and ends with status 2."""
