"""Step 9, the commands, a file each: arguments, printing and exit codes (0 done, 1 the run failed, 2 wrong usage).

In: a command line. Out: text and an exit code. Never imports: testing.
"""

from arhn_datasets.cli.auditing import audit_command, audit_parser
from arhn_datasets.cli.batching import batch_command, batch_parser
from arhn_datasets.cli.caching import cache_command, cache_parser
from arhn_datasets.cli.evaluating import evaluate_command, evaluate_parser
from arhn_datasets.cli.exporting import export_command, export_parser
from arhn_datasets.cli.pushing import push_command, push_parser
from arhn_datasets.cli.refining import refine_command, refine_parser
from arhn_datasets.cli.stages import configured_stages
from arhn_datasets.cli.verifying import verify_command, verify_parser

__all__ = [
    "audit_command",
    "audit_parser",
    "batch_command",
    "batch_parser",
    "cache_command",
    "cache_parser",
    "configured_stages",
    "evaluate_command",
    "evaluate_parser",
    "export_command",
    "export_parser",
    "push_command",
    "push_parser",
    "refine_command",
    "refine_parser",
    "verify_command",
    "verify_parser",
]
