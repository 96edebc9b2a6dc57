"""What server and clients must have in common, though each reads a recipe of its own.

Where data lie, on what device they are trained, what is tracked: that is everybody's own business.
"""

import hashlib
import json
from typing import Final

from fedsdr.recipe.load import flatten_tables
from fedsdr.recipe.sections.recipe import Recipe

SITE_KEYS: Final = (  # keys that may differ from machine to machine
    "data.", "model.path", "model.device", "model.memory_check", "model.gradient_checkpointing",
    "local.micro_batch", "local.cohort", "distill.batch_size", "distill.pilot",
    "distill.entailment.device", "evaluate.benchmark", "tracking.", "deployment.",
    "privacy.noise_seed", "privacy.lifetime_epsilon",
)  # fmt: skip


def agreed_keys(recipe: Recipe) -> dict[str, str]:
    """Every key that all must set alike, "a.b" -> value as JSON."""
    keys = sorted(flatten_tables(recipe.model_dump(mode="json")).items())
    return {key: json.dumps(value) for key, value in keys if not key.startswith(SITE_KEYS)}


def agreement_digest(recipe: Recipe) -> str:
    """The digest of it."""
    text = json.dumps(agreed_keys(recipe))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
