"""A call on the host tier and on the reference."""

from imnet_kernels import tier


def both(call):
    """(host's result, reference's result) of ``call``."""
    with tier.using("reference"):
        want = call()
    with tier.using("host"):
        return call(), want
