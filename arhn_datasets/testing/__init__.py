"""A fake server to test and measure with: text-generation-inference's HTTP contract without a model.

In: the options of a server, its latency and its faults. Out: a URL on loopback. Never imports: stages, runs or folders.

    from arhn_datasets.testing import Emulator, Fault, Latency

    with Emulator(slots=8, latency=Latency(decode=0.005), faults=[Fault(kind="429", on=3)]) as server:
        snippets = arhn.Snippets(endpoint=server.url)

`ScoreEmulator` is a server of scores, in the same way. `EmulatorProcess` serves from another process,
``python -m arhn_datasets.testing.tgi`` at the command line. The replies come from any annotator, by default the lexical
baseline.
"""

from arhn_datasets.testing.counts import Stats
from arhn_datasets.testing.emulator import Emulator
from arhn_datasets.testing.faults import KINDS, Fault, Seen
from arhn_datasets.testing.latency import Latency
from arhn_datasets.testing.process import EmulatorProcess
from arhn_datasets.testing.scoring import ScoreEmulator

__all__ = ["KINDS", "Emulator", "EmulatorProcess", "Fault", "Latency", "ScoreEmulator", "Seen", "Stats"]
