"""Sparse autoencoders on transformer activations: subjects, nulls, training, latent caches."""

import sys
from types import TracebackType


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted before anything was begun; run the same command again", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:
    # `python -m sae.train` is looking for its module: a stage then imports for seconds before it can catch Ctrl-C.
    sys.excepthook = _say_interrupted
