"""Certificates of presets, by `fastgan.verify`: python -m proofs.gpu.certify FOLDER PRESET ...

Writes FOLDER/certificates.json anew after each: {preset: certificate}.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from proofs.gpu.parts import NOT_RUN

MODULE = "fastgan.verify.certificate"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m proofs.gpu.certify", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec(MODULE) is None:
        print(f"{MODULE} is not there: nothing was certified")
        return NOT_RUN
    certify, table = importlib.import_module(MODULE).certificate, importlib.import_module("fastgan.verify.table")
    found: dict[str, Any] = {}
    verdicts = []
    for preset in options.presets:
        try:
            certificate = certify(preset, device=options.device)
        except Exception as error:
            traceback.print_exc()
            verdicts.append((preset, False, f"{type(error).__name__}: {error}"))
            continue
        print("\n".join(table.lines(certificate)) + "\n", flush=True)
        found[preset] = json.loads(table.as_json(certificate))  # which has words for nan and infinity
        (options.folder / "certificates.json").write_text(json.dumps(found, indent=1) + "\n")
        verdicts.append((preset, certificate["passed"], table.verdict(certificate)))
    print("; ".join(f"{preset} {words}" for preset, _, words in verdicts).replace("\n", " "))
    return 0 if all(passed for _, passed, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
