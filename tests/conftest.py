"""Settings of the whole test run."""

import gc


def pytest_collection_finish():
    """Keeps Python's collector from going through torch's modules and the tests again and again: about a tenth of the
    processor time of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)
