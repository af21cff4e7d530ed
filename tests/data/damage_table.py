"""The table of damaged and hostile sources: each case writes one into a folder and returns the path to pack."""

CASES = {}


def case(expected, *, shown=""):
    """Register a case: ``expected``: a regular expression for the one line; ``shown`` must be in it (file, member)."""

    def register(build):
        assert build.__name__ not in CASES
        CASES[build.__name__] = (build, expected, shown)
        return build

    return register
