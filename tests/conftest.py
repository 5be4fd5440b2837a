"""What is the same for all tests: threads, and who hears messages."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

# The networks of the tests are tiny: more threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _messages_stay_in_their_test() -> Iterator[None]:
    """A program that is run here sends the messages of the process to its own files and console.

    The next test must neither write into them nor miss what they are above.
    """
    root = logging.getLogger()
    level, raises = root.level, logging.raiseExceptions
    yield
    for handler in root.handlers[:]:
        if type(handler).__module__ != "_pytest.logging":
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    logging.raiseExceptions = raises
