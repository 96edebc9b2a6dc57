"""The lab: a synthetic world with exact ground truth, and a base model pretrained on it.

On real text it is unknown which rewrites are wrong. Here every fact is known, so hallucination,
forgetting and redundancy are counted exactly; and the base model is an ordinary transformers Llama
folder, so the lab runs the same code as a 7B model.
"""
