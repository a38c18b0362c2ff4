"""Bad payloads: messages broken in every way a seed can think of, each applied or in quarantine; none stops the stream.

``make fuzz`` sends 200,000 of them in batches of 1 to 400 through decoding and validation, under two contracts.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np

from feast_embeddings.materialize.stream import decode
from feast_embeddings.transformations import BehaviorContract, CleaningRules, prepare


def run(count: int, seed: int, contract: BehaviorContract) -> Counter[str]:
    """Send ``count`` messages through; what became of them."""
    from fuzz_payloads import messages
    from sources_fixture import T0

    rng = random.Random(seed)  # noqa: S311 - a fuzz
    payloads, total = list(messages(count, seed)), Counter[str]()
    while payloads:
        size = rng.randrange(1, 400)
        part, payloads = payloads[:size], payloads[size:]
        decoded = decode(part, contract)
        counts = prepare(decoded.raw, contract, CleaningRules(), T0 + 10**10).counts
        empty = set(range(len(part))) - set(decoded.message.tolist()) - set(decoded.poison)
        rows = np.bincount(decoded.message, minlength=len(part))
        lost = [row for row in empty if part[row][:4] != b"\xff\xff\xff\xff"]
        assert not lost, f"seed {seed}: neither read nor refused: {part[lost[0]]!r}"
        assert not any(rows[row] for row in decoded.poison)
        assert (
            counts.read == counts.accepted + counts.deduplicated + sum(counts.quarantined.values()) == len(decoded.raw)
        )
        total += Counter({f"quarantined: {reason}": number for reason, number in counts.quarantined.items()})
        total += Counter(messages=size, poison=len(decoded.poison), empty=len(empty))
        total += Counter(applied=counts.accepted, deduplicated=counts.deduplicated)
    return total


def main() -> int:
    """The command line; an assertion fails where a message is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from sources_fixture import CONTRACT

    contracts = [CONTRACT, replace(CONTRACT, entity_dtype="string", item_dtype="string", naive_time_zone="Asia/Tokyo")]
    began, total = time.monotonic(), Counter[str]()
    for number in range(0, args.messages, 10_000):
        some = min(10_000, args.messages - number)
        total += run(some, args.seed + number, contracts[number // 10_000 % 2])
    seconds = time.monotonic() - began
    print(f"{total.pop('messages'):,} messages in {seconds:.0f} s; 0 lost, 0 crashes")
    for what, count in total.most_common():
        print(f"  {count:8,}  {what}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
