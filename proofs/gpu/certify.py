"""Certificates of presets, by `fastgan.verify`: python -m proofs.gpu.certify FOLDER PRESET ...

Writes FOLDER/certificates.json anew after each: {preset: certificate}.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from fastgan.verify import certificate, table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.gpu.certify", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    verdicts = []
    for preset in options.presets:
        try:
            one = certificate(preset, device=options.device)
        except Exception as error:
            traceback.print_exc()
            verdicts.append((preset, False, f"{type(error).__name__}: {error}"))
            continue
        print("\n".join(table.lines(one)) + "\n", flush=True)
        found[preset] = json.loads(table.as_json(one))  # which has words for nan and infinity
        (options.folder / "certificates.json").write_text(json.dumps(found, indent=1) + "\n")
        verdicts.append((preset, one["passed"], table.verdict(one)))
    print("; ".join(f"{preset} {words}" for preset, _, words in verdicts).replace("\n", " "))
    return 0 if all(passed for _, passed, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
