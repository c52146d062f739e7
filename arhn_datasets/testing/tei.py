"""``python -m arhn_datasets.testing.tei``: the emulated server of scores, to try the HTTP path with."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from arhn_datasets.errors import ConfigurationError
from arhn_datasets.testing.faults import Fault
from arhn_datasets.testing.scoring import COMPATIBLE, EMBEDDING, RERANKER, TEI, ScoreEmulator
from arhn_datasets.testing.tgi import serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run such a server as a command; its exit code."""
    made = argparse.ArgumentParser(
        prog="python -m arhn_datasets.testing.tei",
        description="text-embeddings-inference's HTTP contract, with numbers made of words or a model of your own.",
        argument_default=argparse.SUPPRESS,
    )
    made.add_argument("--host", help=f"default {ScoreEmulator.host}")
    made.add_argument("--port", type=int, default=8081, help="0 for any free one; default 8081")
    made.add_argument("--kind", choices=(RERANKER, EMBEDDING), help=f"default {RERANKER}")
    made.add_argument("--form", choices=(TEI, COMPATIBLE), help=f"{COMPATIBLE}: /v1/rerank or /v1/embeddings alone")
    made.add_argument("--scored-by", metavar="FOLDER", help="a model of sentence-transformers")
    made.add_argument("--api-key", metavar="KEY", help="bearer token to ask for")
    made.add_argument("--max-input-length", type=int, metavar="N", help=f"default {ScoreEmulator.max_input_length}")
    made.add_argument("--fault", dest="faults", action="append", metavar="KIND[:WHEN]", help="as of the other emulator")
    options = vars(made.parse_args(arguments))
    try:
        options["faults"] = [Fault.from_text(text) for text in options.get("faults", ())]
        asyncio.run(serve(ScoreEmulator(**options), until_eof=False))
    except (ConfigurationError, OSError) as error:
        made.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
