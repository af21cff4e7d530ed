"""Runs a call on the host tier and on the reference, for tests that compare the two."""

from imnet_kernels import tier


def both(call):
    """Returns (host's result, reference's result) of ``call``."""
    with tier.using("reference"):
        want = call()
    with tier.using("host"):
        return call(), want
