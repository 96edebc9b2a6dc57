"""What a run of a checked recipe will take, before any weight is loaded."""

from fedsdr.estimate.hardware import Hardware, measure_rates
from fedsdr.estimate.plan import RunPlan, estimate_run
from fedsdr.model.base import choose_device, choose_dtype
from fedsdr.workflows.prepare import PreparedRun, plan_folder


def plan_prepared(run: PreparedRun, flops: float | None = None) -> RunPlan:
    """flops: operations a second, instead of measuring this device."""
    recipe = run.recipe
    device = choose_device(recipe.model.device)
    hardware = (
        measure_rates(device, choose_dtype(recipe.dtype, device))
        if flops is None
        else Hardware("as given", flops, float("inf"))
    )
    with plan_folder(recipe) as path:
        return estimate_run(run.methods, run.clients, hardware, path=path)
