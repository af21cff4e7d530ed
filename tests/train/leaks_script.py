"""Run by test_surroundings.py: imnet.train() must leave its caller's handlers, environment and loggers as they were."""

import logging
import os
import signal
import sys
import warnings

import imnet


def surroundings():
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    levels = {name: logging.getLogger(name).level for name in ["", *logging.root.manager.loggerDict]}
    streams = [(s.encoding, s.errors) for s in (sys.stdout, sys.stderr)]
    return found, dict(os.environ), levels, list(warnings.filters), streams, signal.pthread_sigmask(0, ())


if __name__ == "__main__":
    import torch.distributed  # noqa: F401  (what importing torch changes is not due to a run)

    base = imnet.recipes["quickstart"]
    data = imnet.replace(base.data, train_images=64, test_images=16, image_px=12, batch_images=16)
    recipe = imnet.replace(base, data=data, epochs=1, model_options={"width": 8})
    imnet.train(recipe, out=f"{sys.argv[1]}/one", device="cpu", precision="fp32")
    before = surroundings()
    imnet.train(recipe, out=f"{sys.argv[1]}/two", device="cpu", procs=2, precision="fp32")
    for was, now in zip(before, surroundings(), strict=True):
        assert was == now, (was, now)
