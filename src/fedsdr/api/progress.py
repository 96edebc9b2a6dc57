"""Where a call of the API says how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedsdr.core.notebook import default_reporter
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.core.quiet import quieted_transformers

ProgressOption = bool | Reporter


@contextmanager
def call_reporter(progress: ProgressOption) -> Iterator[Reporter]:
    """The reporter for as long as a call runs; other libraries' bars are off meanwhile.

    progress: True shows bars in a notebook and at a terminal, and lines elsewhere; False is
    silent; a reporter is used as it is, and its owner draws it.
    """
    if isinstance(progress, Reporter):
        yield progress
        return
    reporter = default_reporter() if progress else silent_reporter()
    with quieted_transformers(), reporter.live():
        yield reporter
