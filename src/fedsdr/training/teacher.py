"""Consolidation: the client's own model W0 + R + S as a teacher of the shared R.

Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531, at temperature 1) on the client's own
records. Both read the same prompt c, x and response y; R0 is R as the stage found it:

    L = (1 / N) sum_i sum_t KL( p_{R0,S}(. | c_i, x_i, y_i<t) || p_R(. | c_i, x_i, y_i<t) )

over the N response tokens of a batch. The words y themselves are no targets, only what they are
conditioned on.
"""

import torch
from torch import Tensor

from fedsdr.core.adapters import Adapter
from fedsdr.core.products import stack_components
from fedsdr.data.batches import Batch
from fedsdr.model.lora import Stream, TwoStreamModel
from fedsdr.training.loss import response_logits
from fedsdr.training.soft import forward_divergence


def teacher_stream(r: Adapter, s: Adapter) -> Adapter:
    """R0 and S as one frozen adapter in the place of S, so that R can be trained."""
    return stack_components([(r, 1.0), (s, 1.0)])


class ConsolidationTeacher:
    """The teacher W0 + R0 + S and the student W0 + R in one model, whose stream S holds
    `teacher_stream`."""

    def __init__(self, model: TwoStreamModel, folded: bool) -> None:
        """folded: whether the model holds a folded part of R, which both then include."""
        self.model = model
        common = (Stream.FOLDED,) if folded else ()
        self.teaching, self.learning = (Stream.SMOOTH, *common), (Stream.RECTIFY, *common)

    def losses(self, batch: Batch) -> Tensor:
        """KL of the student from the teacher at each response token: (N,)."""
        self.model.activate(*self.teaching)
        with torch.no_grad():
            wanted = response_logits(self.model.model, batch).log_softmax(-1)
        self.model.activate(*self.learning)
        found = response_logits(self.model.model, batch).log_softmax(-1)
        return forward_divergence(wanted, found)
