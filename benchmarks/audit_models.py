"""What an audit says of models: published ones, and those of a run by generation.

    python benchmarks/audit_models.py wiki.test.raw SmolLM2.gguf gemma.gguf > models.json
    python benchmarks/audit_models.py --bios 700 runs/league-facts > facts.json

A model is a folder, a GGUF file or a hub id. Of a folder of a run, every model that it kept is
audited: the base models, which have learnt from real text alone, and those of its generations. The
text is a file, or as many synthetic biographies as the run's corpus has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fortifai.audit import audit_model
from fortifai.data.bios import bios
from fortifai.models.causal_lm import CausalLM


def models(name: str) -> Iterator[str]:
    """The models of a run, or the one of this name."""
    if (Path(name) / "arms").is_dir():
        yield from sorted(str(base) for base in Path(name).glob("shared/base*"))
        yield from sorted(str(kept) for kept in Path(name).glob("arms/*/*/*/model"))
    else:
        yield name


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit all and print a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bios", type=int, help="people of the biographies that are the text")
    parser.add_argument("names", nargs="+", help="the text, unless --bios, and models or runs")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = list(given.names)
    text = bios(given.bios, 0)[0].text if given.bios else Path(names.pop(0)).read_text("utf-8")
    for model in (each for name in names for each in models(name)):
        audit = audit_model(CausalLM.from_base(model, device="cpu"), text)
        found = {
            f.name: {"difference": f.difference and (f.difference.value, f.difference.low,
                                                     f.difference.high),
                     "floor": f.floor, "level": f.level, "evidence": f.evidence}
            for f in audit.findings
        }  # fmt: skip
        row = {"model": model, "collapsed": audit.collapsed, "verdict": audit.verdict}
        print(json.dumps(row | {"findings": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
