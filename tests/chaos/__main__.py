"""scripts/chaos: seeds, steps, time. See docs/chaos.md."""

import argparse
import random
import sys
import time
import traceback

from tests.attack.attack import Attack
from tests.chaos import machine
from tests.chaos.kills import Kills
from tests.chaos.service import BrokenError


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Do things to the real service, and look.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, default=10, metavar="N", help="the seeds 1 to N (default: 10)")
    which.add_argument("--seed", type=int, metavar="N", help="this one: replay what went wrong")
    which.add_argument("--minutes", type=float, metavar="M", help="new seeds by chance, for so long")
    which.add_argument("--kills", type=int, metavar="N", help="only kill -9, to our own processes, so often")
    which.add_argument("--attack", type=int, metavar="N", help="only packets to both listeners, N, and floods of N / 2")
    parser.add_argument(
        "--draw", type=int, metavar="N", help="with --kills or --attack: what is drawn by chance is drawn from this"
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps with each seed (default: 20)")
    arguments = parser.parse_args()
    begin = time.monotonic()
    if arguments.kills or arguments.attack:
        number = random.randrange(1 << 32) if arguments.draw is None else arguments.draw
        what = f"{arguments.kills} kills" if arguments.kills else f"{arguments.attack} packets"
        print(f"chaos: {what}, drawn from {number}", flush=True)
        try:
            if arguments.kills:
                seen = Kills(number).run(arguments.kills)
            else:
                seen = Attack(number, arguments.attack, arguments.attack // 2).run()
            print(f"chaos: {seen}; {time.monotonic() - begin:.0f} s: all held")
        except BrokenError as error:
            print(f"chaos: broken: {error}")
            return 1
        return 0
    if arguments.minutes:
        end = begin + 60 * arguments.minutes
        # Drawn one by one, so that each can be told before it is used.
        seeds = (random.randrange(1, 1 << 32) for _ in iter(lambda: time.monotonic() < end, False))
    else:
        seeds = iter([arguments.seed] if arguments.seed is not None else range(1, arguments.seeds + 1))
    done = steps = 0
    for number in seeds:
        print(f"seed {number}", flush=True)
        try:
            steps += machine.run(number, arguments.steps)
            done += 1
        except Exception as error:
            if not isinstance(error, BrokenError):  # that has been told, with its step
                traceback.print_exception(error)
            print(f"\nchaos: broken; replay with: scripts/chaos --seed {number} --steps {arguments.steps}")
            return 1
    print(f"chaos: {done} seeds, {steps} steps, {time.monotonic() - begin:.0f} s: all held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
