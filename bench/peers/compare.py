#!/usr/bin/env python3
"""Runs slices of looplm and of a peer by turns and prints the ratio of their times.

Both programs hold their model and serve slices on request (bench_slices.c, llama_slices.c), so the two are never
measured at different hours of a shared machine. A ratio is peer seconds / our seconds of neighbouring slices; medians
and quartiles over --slices pairs. The order within a pair changes from pair to pair. README.md has whole commands.
"""

import argparse
import json
import statistics
import subprocess


class Server:
    def __init__(self, command: str):
        self.process = subprocess.Popen(command.split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{command}: did not start")

    def seconds(self, request: str) -> float:
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        try:
            return float(answer)
        except ValueError:
            raise SystemExit(f"'{request}' was answered with '{answer.strip()}'") from None

    def resident_mib(self) -> float:
        """The most memory that was resident so far."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def quartiles(values: list[float]) -> dict:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high}


def compare(ours: Server, peer: Server, request: str, slices: int) -> dict:
    times = {ours: [], peer: []}
    for server in times:
        server.seconds(request)  # warm
    for i in range(slices):
        for server in (ours, peer) if i % 2 else (peer, ours):
            times[server].append(server.seconds(request))
    ratios = [theirs / mine for mine, theirs in zip(times[ours], times[peer])]
    return {
        "request": request,
        "slices": slices,
        "ours_s": quartiles(times[ours]),
        "peer_s": quartiles(times[peer]),
        "ratio": quartiles(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, help="command of bench_slices")
    parser.add_argument("--peer", required=True, help="command of llama_slices")
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("request", nargs="+", help="'decode ROWS CONTEXT TOKENS' or 'prefill TOKENS'")
    options = parser.parse_args()
    ours, peer = Server(options.ours), Server(options.peer)
    results = []
    for request in options.request:
        result = compare(ours, peer, request, options.slices)
        results.append(result)
        if not options.json:
            r, mine, theirs = result["ratio"], result["ours_s"], result["peer_s"]
            print(f"{request:24} ours {mine['median']:.4f} s, peer {theirs['median']:.4f} s, "
                  f"ratio {r['median']:.2f} ({r['low']:.2f}..{r['high']:.2f})", flush=True)
    memory = {"ours": ours.resident_mib(), "peer": peer.resident_mib()}
    ours.close()
    peer.close()
    if options.json:
        print(json.dumps({"results": results, "resident_mib": memory}, indent=1))
    else:
        print(f"resident: ours {memory['ours']:.0f} MiB, peer {memory['peer']:.0f} MiB")


if __name__ == "__main__":
    main()
