"""What a diagnosis suggests, in words: only what docs/findings.md or arithmetic supports."""

from collections.abc import Mapping
from typing import Any, Final

NEAR: Final = 0.02  # bits of divergence beyond chance; both are conventions, not measurements:
FAR: Final = 0.1  # the lab's clients, with a style of their own each, are above the second
CROWDED: Final = 0.5  # bits that chance alone gives: too few words to tell more from it

Found = Mapping[str, Any]


def interpret_diagnosis(found: Found) -> list[str]:
    return [
        *_skipped(found),
        *_leaks(found),
        *_repeats(found),
        *_lengths(found),
        *_sizes(found),
        *_apart(found),
        *_rewriting(found),
        *_gradients(found),
        *_truth(found),
    ]


def _total(found: Found, key: str) -> int:
    return sum(client[key] for client in found["clients"])


def _named(found: Found, key: str) -> str:
    rows = [f"{c['name']} {c[key]}" for c in found["clients"] if c[key]]
    return ", ".join(rows)


def _skipped(found: Found) -> list[str]:
    return [
        f"{each['file']}: {each['skipped']} of {each['rows']} rows have no response and are "
        "skipped."
        for each in found["skipped"]
        if each["skipped"]
    ]


def _leaks(found: Found) -> list[str]:
    sentences = []
    if _total(found, "leaked"):
        sentences.append(
            "LEAK: held-out records whose prompt the same client trains on: "
            f"{_named(found, 'leaked')}. Their scores say nothing of generalisation: remove the "
            "duplicates."
        )
    if _total(found, "leaked_across"):
        sentences.append(
            "LEAK across clients: held-out records whose prompt another client trains on: "
            f"{_named(found, 'leaked_across')}. They flatter the global model."
        )
    return sentences


def _repeats(found: Found) -> list[str]:
    sentences = []
    if _total(found, "repeated"):
        sentences.append(
            f"Records that repeat an earlier one of the same client: {_named(found, 'repeated')}. "
            "Each counts again in training and in the client's weight."
        )
    if _total(found, "shared"):
        sentences.append(f"Records that other clients hold too: {_named(found, 'shared')}.")
    return sentences


def _lengths(found: Found) -> list[str]:
    sentences, limit = [], found["max_length"]
    if _total(found, "left_out"):
        sentences.append(
            f"Records whose prompt alone fills {limit} tokens are left out: "
            f"{_named(found, 'left_out')}."
        )
    if _total(found, "truncated"):
        sentences.append(
            f"Responses cut at {limit} tokens: {_named(found, 'truncated')}. A cut response "
            "teaches no end of turn: raise model.max_length if the model's context allows it."
        )
    if _total(found, "wordless"):
        sentences.append(f"Responses without a letter or digit: {_named(found, 'wordless')}.")
    if _total(found, "short"):
        sentences.append(
            "Suspiciously short responses (at most two words where the client's median is ten or "
            f"more): {_named(found, 'short')}."
        )
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


def _apart(found: Found) -> list[str]:
    if "apart" not in found:
        return []
    each = found["apart"]
    beyond = each["even_js"] - each["chance_js"]
    numbers = (
        f"at equal word counts the divergence is {each['even_js']:.3f} bits, where the same "
        f"records dealt by chance have {each['chance_js']:.3f}"
    )
    if each["chance_js"] > CROWDED:
        return [
            f"The divergence of all words is {each['js']['mean']:.3f} bits. The client with least "
            f"has {each['words']} words, too few to tell what is more than chance ({numbers})."
        ]
    if beyond < NEAR:
        return [
            f"The clients' responses lie about as far apart as chance would put them ({numbers}): "
            "there is little between clients for rewriting to flatten."
        ]
    degree = "strongly" if beyond >= FAR else "somewhat"
    sentence = f"The clients' responses differ {degree} in their words ({numbers})."
    if beyond < FAR:
        return [sentence]
    return [
        f"{sentence} Where styles conflict like this on the lab, FedAvg on raw responses lost "
        "general knowledge and FedSD kept more of it at equal rounds (+12 points, three seeds) "
        "but learnt fewer facts; at equal facts the difference could not be told from zero under "
        "FedAvg, and was large under FedAdam and FedYogi (+44). The lab is a toy: it says "
        "what can happen, not how large it is for your model. Words also differ because subjects "
        "do, which rewriting does not and should not change."
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
        f"{sentence}. Read it as a description: on the lab rewriting lowered this cosine at round "
        "0, whatever FedSD did later, so the first gradient does not tell whether it helps."
    ]


def _truth(found: Found) -> list[str]:
    known, records = _total(found, "checkable"), _total(found, "records")
    if not known:
        return [
            "No record has an answer that a check knows: rewrites cannot be verified. On the lab "
            "31 % of unverified rewrites were wrong, and they limited what FedSD learnt."
        ]
    return [
        f"{known} of {records} records have an answer that a check of rewrites knows (answer, "
        "number, label). On the lab verified rewrites taught 33 points more facts than "
        "unverified ones: such checks belong into distill.checks, with several distill.attempts."
    ]
