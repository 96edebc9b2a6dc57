"""Progress of a call of the API."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedsdr.core.notebook import default_reporter
from fedsdr.core.progress import Reporter, silent_reporter
from fedsdr.core.quiet import quieted_transformers

ProgressOption = bool | Reporter


@contextmanager
def call_reporter(progress: ProgressOption) -> Iterator[Reporter]:
    """The reporter of a call. Progress bars of other libraries are off until the call ends.

    progress: True shows bars in a notebook or terminal, and lines elsewhere; False is silent; a
    reporter is used as given, and its owner draws it.
    """
    if isinstance(progress, Reporter):
        yield progress
        return
    reporter = default_reporter() if progress else silent_reporter()
    with quieted_transformers(), reporter.live():
        yield reporter
