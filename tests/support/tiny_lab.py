"""A recipe on a lab so small that a method takes a tenth of a second."""

ROUNDS = 2
TABLES = {
    "seed": 3,
    "method": "paper",
    "model": {"path": "lab", "max_length": 64, "device": "cpu"},
    "lora": {"rank": 2, "alpha": 4.0},
    "lab": {"entities": 4, "clients": 3, "pretrain_steps": 3},
    "distill": {
        "prompt": "{instruction} reference {response} rewrite",
        "min_tokens": 4,
        "batch_size": 64,
        "checks": ["empty", "truncated", "repetition", "meta_talk"],
    },
    "federation": {"rounds": ROUNDS},
    "local": {"batch_size": 2, "rectify_steps": 1, "smooth_steps": 1},
    "evaluate": {"every": 0, "aggregation_error": True},
    "options": {"krum": {"malicious": 0}},
}
