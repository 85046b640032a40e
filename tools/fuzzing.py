"""What the fuzzers share: a loop over changed inputs, by atheris where it is installed.

A check takes bytes and must return, or raise an InputError of one line, in bounded time. Everything else is
a finding: the loop stops with its traceback and leaves the input in a file.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from muserve.errors import InputError

Check = Callable[[bytes], object]
Mutate = Callable[[bytes, random.Random], bytes]

MOST_SECONDS = 10.0
_INTERESTING = (0, 1, 2, 127, 128, 255)


def verdict(check: Check, data: bytes) -> str:
    """Run ``check``: empty when it takes the input, else its complaint.

    Raises AssertionError when the complaint is not one line or comes late.
    """
    started_s = time.monotonic()
    complaint = ""
    try:
        check(data)
    except InputError as error:
        complaint = str(error)
        assert complaint, "expected a sentence"
        assert len(complaint.splitlines()) == 1, f"expected one line, got {complaint!r}"
    took_s = time.monotonic() - started_s
    assert took_s < MOST_SECONDS, f"expected an answer within {MOST_SECONDS} s, got it after {took_s:.1f} s"
    return complaint


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """``data`` with up to eight small changes: other, more, fewer, moved or repeated bytes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        start = chance.randrange(len(changed) + 1)
        end = min(len(changed), start + chance.choice((1, 2, 4, 16, 64)))
        match chance.randrange(5):
            case 0:
                changed[start:end] = bytes(chance.randrange(256) for _ in range(end - start))
            case 1:
                changed[start:start] = bytes([chance.choice(_INTERESTING)]) * chance.choice((1, 3, 200))
            case 2:
                del changed[start:end]
            case 3:
                piece = changed[start:end]
                place = chance.randrange(len(changed) + 1)
                changed[place:place] = piece * chance.choice((1, 1, 50))
            case _ if start < len(changed):
                changed[start] ^= 1 << chance.randrange(8)
    return bytes(changed)


def main(what: str, check: Check, seeds: Sequence[bytes], mutate: Mutate = mutate_bytes) -> None:
    """The command line of a fuzzer."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--seconds", type=int, default=300, help="how long to search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finding", type=Path, default=Path("finding.bin"), help="where a bad input is left")
    parser.add_argument("--replay", type=Path, help="check this one file instead")
    args = parser.parse_args()
    if args.replay:
        print(verdict(check, args.replay.read_bytes()) or "taken")
        return

    def checked(data: bytes) -> None:
        args.finding.write_bytes(data)  # beforehand, because native code may end the process
        verdict(check, data)

    try:
        import atheris
    except ImportError:
        print("atheris is not installed: changing inputs at random, without following coverage")
        _search(checked, seeds, mutate, args.seconds, args.seed)
        args.finding.unlink(missing_ok=True)
        return

    def mutator(data: bytes, most_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        whole = data if data and chance.randrange(4) else chance.choice(seeds)
        return mutate(whole, chance)[:most_bytes]

    atheris.instrument_all()
    options = [
        f"-max_total_time={args.seconds}",
        f"-seed={args.seed + 1}",
        "-max_len=65536",
        "-rss_limit_mb=4096",
    ]
    atheris.Setup([sys.argv[0], *options], checked, custom_mutator=mutator)
    atheris.Fuzz()


def _search(check: Check, seeds: Sequence[bytes], mutate: Mutate, seconds: int, seed: int) -> None:
    chance, runs, end_s = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end_s:
        data = chance.choice(seeds)
        for _ in range(chance.randint(1, 3)):
            data = mutate(data, chance)
        check(data)
        runs += 1
    print(f"{runs} inputs in {seconds} s, nothing found")
