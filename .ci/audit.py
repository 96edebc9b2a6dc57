"""Known vulnerabilities of what constraints.txt pins: `make audit`.

pip brings pip-audit into a folder of its own, from whichever index pip is set up for. Status 1
where a pin has a known vulnerability, and where some pins could be looked up and others not. Where
none could, because there is no network or nobody who knows them, it says that the audit was left
out; pip-audit itself would report that it found nothing.
"""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOOL = "pip-audit==2.10.1"
NO_NETWORK = re.compile(r"(Connection|Proxy|SSL|Timeout)\w*Error|Timeout\b|Could not connect")


def main() -> int:
    folder = ROOT / "build" / "audit"
    venv.create(folder, with_pip=True)
    installed = run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", TOOL)
    if installed.returncode != 0:
        print(f"audit: left out, pip cannot bring {TOOL}: {last_line(installed.stderr)}")
        return 0
    status, text = outcome(
        run(
            str(folder / "bin" / "pip-audit"), "--no-deps", "--disable-pip", "--format", "json",
            "--requirement", str(ROOT / "constraints.txt"),
        )
    )  # fmt: skip
    print(text)
    return status


def outcome(done: "subprocess.CompletedProcess[str]") -> tuple[int, str]:
    """An exit status and what to print, for what pip-audit did."""
    if done.stdout.strip():
        return verdict(json.loads(done.stdout)["dependencies"])
    reason = last_line(done.stderr)
    if NO_NETWORK.search(reason):
        return 0, f"audit: left out, nobody could be asked: {reason}"
    return 1, f"audit: failed\n{done.stderr}"


def verdict(found: list[dict[str, Any]]) -> tuple[int, str]:
    """The same for the "dependencies" of its JSON: each has "vulns" or a "skip_reason"."""
    unknown = [f"{each['name']}: {each['skip_reason']}" for each in found if "skip_reason" in each]
    weak = [
        f"{each['name']} {each['version']}: {bug['id']}, fixed in {bug['fix_versions']}"
        for each in found
        for bug in each.get("vulns", ())
    ]
    if len(unknown) == len(found):
        return 0, f"audit: left out, none of {len(found)} pins could be looked up"
    if weak or unknown:
        return 1, "\n".join(["audit: failed", *weak, *unknown])
    return 0, f"audit: none of {len(found)} pins has a known vulnerability"


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason was given"])[-1]


if __name__ == "__main__":
    sys.exit(main())
