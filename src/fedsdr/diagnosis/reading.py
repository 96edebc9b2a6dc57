"""What a diagnosis suggests, in words: only what arithmetic or docs/findings.md supports.

No number here is a measurement of ours: those are in docs/findings.md, with the commands that
reproduce them.
"""

from collections.abc import Mapping
from typing import Any, Final

NEAR: Final = 0.02  # bits of divergence beyond chance; both thresholds are conventions:
FAR: Final = 0.1  # the lab's clients, each with a style of its own, exceed the second
CROWDED: Final = 0.5  # bits that chance alone gives: too few words to distinguish more from it
FINDINGS: Final = "docs/findings.md"
BEYOND: Final = "docs/beyond.md"
# A count of `fedsdr.diagnosis.data_quality` -> what to say where some client's is not 0.
COUNTS: Final = {
    "leaked": "LEAK: held-out records whose prompt the same client trains on: {clients}. Their "
    "scores say nothing of generalisation: remove the duplicates.",
    "leaked_across": "LEAK across clients: held-out records whose prompt another client trains on: "
    "{clients}. They flatter the global model.",
    "repeated": "Records that repeat an earlier one of the same client: {clients}. Each counts "
    "again in training and in the client's weight.",
    "shared": "Records that other clients hold too: {clients}.",
    "left_out": "Records whose prompt alone fills {limit} tokens are left out: {clients}.",
    "truncated": "Responses cut at {limit} tokens: {clients}. A cut response teaches no end of "
    "turn: raise model.max_length if the model's context allows it.",
    "wordless": "Responses without a letter or digit: {clients}.",
    "short": "Suspiciously short responses (at most two words where the client's median is ten or "
    "more): {clients}.",
}

Found = Mapping[str, Any]


def interpret_diagnosis(found: Found) -> list[str]:
    """Sentences on what `fedsdr.workflows.diagnose.run_diagnosis` returns."""
    return [
        *_skipped(found),
        *_counts(found),
        *_sizes(found),
        *_divergence(found),
        *_rewriting(found),
        *_gradients(found),
        *_verifiable(found),
    ]


def _skipped(found: Found) -> list[str]:
    return [
        f"{each['file']}: {each['skipped']} of {each['rows']} rows are skipped."
        for each in found["skipped"]
        if each["skipped"]
    ]


def _counts(found: Found) -> list[str]:
    sentences = []
    for key, words in COUNTS.items():
        if rows := [f"{c['name']} {c[key]}" for c in found["clients"] if c[key]]:
            sentences.append(words.format(clients=", ".join(rows), limit=found["max_length"]))
    return sentences


def _sizes(found: Found) -> list[str]:
    records = {c["name"]: c["records"] for c in found["clients"]}
    total, sentences = sum(records.values()), []
    if len(records) < 2:
        return ["One client only: there are no pairs to compare, and nothing to aggregate."]
    largest = max(records, key=lambda name: records[name])
    if records[largest] >= 2 * total / len(records):
        sentences.append(
            f"Clients weigh in the mean by their records: {largest} has "
            f"{100 * records[largest] / total:.0f} % of the weight."
        )
    passes = found["passes"]
    least, most = min(passes.values()), max(passes.values())
    if most > 0:
        sentences.append(
            f"A whole run sees each record {least:.1f} to {most:.1f} times (stage 2, a client "
            "that takes part in every round)."
        )
    return sentences


def _divergence(found: Found) -> list[str]:
    if "apart" not in found:
        return []
    each = found["apart"]
    beyond = each["even_js"] - each["chance_js"]
    numbers = (
        f"at equal word counts the divergence is {each['even_js']:.3f} bits, where the same "
        f"records assigned to clients at random have {each['chance_js']:.3f}"
    )
    if each["chance_js"] > CROWDED:
        return [
            f"The divergence of all words is {each['js']['mean']:.3f} bits. The client with least "
            f"has {each['words']} words, too few to distinguish from chance ({numbers})."
        ]
    if beyond < NEAR:
        return [
            f"The clients' responses differ about as much as chance would make them ({numbers}): "
            "there is little between clients for rewriting to flatten."
        ]
    degree = "strongly" if beyond >= FAR else "somewhat"
    sentence = f"The clients' responses differ {degree} in their words ({numbers})."
    if beyond < FAR:
        return [sentence]
    return [
        f"{sentence} Where styles conflict like this in the synthetic lab, FedAvg on raw responses "
        "loses general knowledge, and FedSD keeps more of it at equal rounds while it learns fewer "
        f"facts; how much, and what is left at equal facts, is in {FINDINGS}. The lab shows what "
        "can happen, not how large it is for your model. Words also differ because subjects do, "
        "which rewriting does not and should not change."
    ]


def _rewriting(found: Found) -> list[str]:
    if "rewriting" not in found:
        return []
    each = found["rewriting"]
    total = sum(each["records"].values())
    raw, new = each["raw_text"]["words"], each["rewritten_text"]["words"]
    before, after = (
        each[side]["even_js"] - each[side]["chance_js"] for side in ("raw", "rewritten")
    )
    sentences = [
        f"Of {total} sampled records {each['kept_raw']} keep their raw response; responses go "
        f"from {raw:.1f} to {new:.1f} words on average. Beyond chance, at equal word counts, the "
        f"clients' divergence goes from {before:.3f} to {after:.3f} bits."
    ]
    if each["kept_raw"] > total / 2:
        sentences.append(
            "Most rewrites are refused, so training on them is mostly training on raw responses: "
            "does the model follow instructions?"
        )
    return sentences


def _gradients(found: Found) -> list[str]:
    if "gradients" not in found:
        return []
    each = found["gradients"]
    sentence = (
        f"Gradients of R at the start: mean cosine between clients {each['mean']['mean']:.3f}"
    )
    if each["own"] is not None:
        sentence += (
            f"; between two halves of one client's sample {each['own']:.3f}, between halves of "
            f"different clients {each['others']:.3f}"
        )
    return [
        f"{sentence}. It describes the clients and predicts nothing: the first round's gradients "
        f"do not show whether rewriting helps ({FINDINGS})."
    ]


def _verifiable(found: Found) -> list[str]:
    known, records = (
        sum(client[key] for client in found["clients"]) for key in ("checkable", "records")
    )
    if not known:
        return [
            "No record has an answer that a check knows, so rewrites cannot be verified; wrong "
            f"rewrites limit what FedSD learns ({FINDINGS}). Contrastive rewriting, part of the "
            f'default method = "fedsdr2", needs no such answers ({BEYOND} says what it gives and '
            "where it fails)."
        ]
    return [
        f"{known} of {records} records have an answer that a check of rewrites knows (answer, "
        "number, label). Add such checks to distill.checks, with several distill.attempts: in the "
        f"lab verified rewrites teach more than unverified ones ({FINDINGS})."
    ]
