"""TensorBoard: event files in RUN/tensorboard/METHOD."""

import shutil
from collections.abc import Mapping

from fedsdr.core.layout import TENSORBOARD_FOLDER
from fedsdr.tracking.contract import Tracked


class TensorBoard:
    """A resumed method's events are written anew from metrics.jsonl: no gaps, nothing twice."""

    def __init__(self, tracked: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = tracked.out / TENSORBOARD_FOLDER / tracked.method
        shutil.rmtree(folder, ignore_errors=True)
        self.logged, self._parameters = -1, tracked.parameters
        self._writer = SummaryWriter(str(folder))

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()
        self.logged = round

    def finish(self, final: Mapping[str, float] | None) -> None:
        from torch.utils.tensorboard.summary import hparams

        if final is not None:
            # The writer's own add_hparams would create a second run.
            named = {f"final/{name}": value for name, value in final.items()}
            for summary in hparams(dict(self._parameters), named):  # type: ignore[no-untyped-call]
                self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
            for name, value in named.items():
                self._writer.add_scalar(name, value, max(self.logged, 0))
        self._writer.close()
