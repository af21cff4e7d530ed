"""The table of damaged and hostile sources: each case writes one into a folder and returns the path to pack."""

CASES = {}


def case(expected, *, shown=""):
    """Registers a case: the error line must match the regular expression ``expected`` and contain ``shown``."""

    def register(build):
        assert build.__name__ not in CASES
        CASES[build.__name__] = (build, expected, shown)
        return build

    return register
