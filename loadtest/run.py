#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Runs k6 scenarios against a Hearth of its own and holds k6's counts against Hearth's.

    python3 loadtest/run.py --hearth target/release/hearth --k6 k6 smoke steady

For each scenario: k6's own checks and thresholds, and hearth_invocations_total by function and outcome, which must
have grown by exactly what k6 counted. `mixed` also looks at what the calls left behind in processes, file
descriptors, cgroups, mounts and memory; `slow` runs slowhttptest instead of k6. At the end Hearth is stopped, and nothing of it may be left.

Everything runs on loopback, in a data directory that is removed afterwards. Prints `N passed, N failed` last.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request

# Building the functions is part of the first start.
READY_SECONDS_MAX = 900
STOP_SECONDS_MAX = 60
# A receipt is complete only once its sandbox is clean again, shortly after the answer.
COUNTS_SECONDS_MAX = 10
IDLE_SECONDS = 10
RSS_GROWTH_MAX = 0.05

HERE = pathlib.Path(__file__).resolve().parent


class Report:
    """What passed and what did not, printed as it happens."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def claim(self, claim, holds, evidence=""):
        """Says whether a claim holds; the evidence is printed either way where there is any."""
        self.passed += bool(holds)
        self.failed += not holds
        print(f"{'ok    ' if holds else 'FAILED'} {claim}{': ' if evidence else ''}{evidence}", flush=True)
        return holds


class Hearth:
    """A `hearth up` of our own, on a port that the kernel picks."""

    def __init__(self, binary, functions, out):
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="hearth-loadtest-"))
        # The gateway, an ordinary user, must reach its state in there.
        self.place.chmod(0o711)
        self.data = self.place / "data"
        self.binary = binary
        self.url = None
        self.ready = threading.Event()
        self.log = open(out / "hearth.log", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            [binary, "up", functions, "--listen", "127.0.0.1:0", "--data-dir", self.data],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.log.write(line)
            self.log.flush()
            found = re.search(r"http://127\.0\.0\.1:[1-9]\d*", line)
            if found and self.url is None:
                self.url = found.group(0)
            if re.search(r"\bREADY\b", line):
                self.ready.set()
        self.ready.set()

    def wait_ready(self):
        self.ready.wait(READY_SECONDS_MAX)
        # The curl lines that name the address may follow READY.
        deadline = time.monotonic() + 5
        while self.url is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.process.poll() is None and self.url is not None

    def instance(self):
        return (self.data / "instance").read_text(encoding="utf-8").strip()

    def command(self, *words):
        """A client command, with the key of this server."""
        key = (self.data / "key").read_text(encoding="utf-8").strip()
        ended = subprocess.run([self.binary, *words, "--url", self.url], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True, check=True, env={**os.environ, "HEARTH_KEY": key})
        return ended.stdout

    def remove_functions(self):
        names = re.findall(r'"name": *"([^"]+)"', self.command("ls", "--json"))
        for name in names:
            self.command("rm", name)
        return names

    def deploy(self, functions, names):
        for name in names:
            self.command("deploy", "--no-build", functions / name)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def scrape(self):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return answer.read().decode()


def invocations(scrape):
    """hearth_invocations_total by function and outcome."""
    counts = collections.Counter()
    for labels, value in re.findall(r"^hearth_invocations_total\{(.*)\} (\S+)$", scrape, re.M):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        counts[label["function"].replace("-", "_"), label["outcome"]] += int(float(value))
    return counts


def counted_by_k6(summary):
    """What k6 counted itself, from the counters of hearth.js."""
    counts = collections.Counter()
    for name, metric in summary["metrics"].items():
        found = re.fullmatch(r"invocations__(\w+?)__(\w+)", name)
        if found and metric["count"]:
            counts[found.groups()] += int(metric["count"])
    return counts


def growth(before, after):
    return +collections.Counter({key: after[key] - before[key] for key in after})


def run_k6(options, scenario, hearth, out, report, environment=None):
    """One scenario, its checks, and the two ledgers."""
    summary_file = out / f"{scenario}.json"
    before = invocations(hearth.scrape())
    ended = subprocess.run(
        [options.k6, "run", "--quiet", "--no-usage-report", "--summary-export", summary_file, HERE / f"{scenario}.js"],
        stdin=subprocess.DEVNULL, env={**os.environ, "HEARTH_URL": hearth.url, **(environment or {})}, check=False,
    )
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    checks = summary["metrics"].get("checks", {"passes": 0, "fails": 0})
    report.claim(
        f"{scenario}: every check and threshold of k6 holds",
        ended.returncode == 0 and checks["passes"] > 0,
        f"{checks['passes']} checks passed, {checks['fails']} failed, exit code {ended.returncode}",
    )
    expected = counted_by_k6(summary)
    deadline = time.monotonic() + COUNTS_SECONDS_MAX
    while (seen := growth(before, invocations(hearth.scrape()))) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    outcomes = collections.Counter()
    for (_, outcome), count in expected.items():
        outcomes[outcome] += count
    evidence = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    if seen != expected:
        evidence += f"; k6 counted {dict(expected)}, Hearth {dict(seen)}"
    report.claim(f"{scenario}: hearth_invocations_total grew by what k6 counted", seen == expected and expected, evidence)


def leftovers(data, instance):
    """Processes, cgroups and mounts that still name this instance."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            where = os.readlink(process / "exe") + (process / "cgroup").read_text()
        except OSError:
            continue
        if str(data) in where or instance in where:
            found.append(f"process {process.name}")
    found += [f"cgroup {path}" for path in cgroups(instance)]
    found += [f"mount {line.split()[4]}" for line in mounts() if str(data) in line or instance in line]
    return found


def cgroups(instance):
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if instance in folder]


def mounts():
    return pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()


def family(pid):
    """A process and all its descendants, by pid."""
    children = collections.defaultdict(list)
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children[int(fields[1])].append(int(status.parent.name))
    found, open_ends = [], [pid]
    while open_ends:
        one = open_ends.pop()
        found.append(one)
        open_ends += children[one]
    return found


def role(pid):
    """`serve`, `gateway` or `spawner` for Hearth's own processes; none for what runs in sandboxes."""
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((word for word in words[1:3] if word in ("serve", "gateway", "spawner")), None)


def account(hearth):
    """What Hearth holds of the host's, for comparing before and after."""
    pids = family(hearth.process.pid)
    held = {"processes": len(pids), "cgroups": len(cgroups(hearth.instance())), "mounts": len(mounts())}
    for pid in pids:
        name = role(pid)
        if name:
            held[f"fds of {name}"] = len(os.listdir(f"/proc/{pid}/fd"))
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            held[f"rss of {name}"], held[f"peak rss of {name}"] = (
                int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024 for field in ("VmRSS", "VmHWM")
            )
    return held


def check_leaks(options, hearth, out, report):
    """The same load twice: what the first left is the baseline, for caches fill up to what the load needs.

    Before counting, the functions are removed: how many idle sandboxes a load leaves is chance, what is left without
    them is not.
    """
    before = {}
    for turn in ("first", "second"):
        run_k6(options, "mixed", hearth, out, report, {"MIXED_CALLS": str(options.mixed_calls)})
        names = hearth.remove_functions()
        time.sleep(IDLE_SECONDS)
        now = account(hearth)
        if turn == "first":
            before = now
            hearth.deploy(options.functions, names)
    for thing, held in before.items():
        if thing.startswith("peak"):
            continue
        # The allocator gives back what it likes when it likes: what counts is that a second load needs no more than the
        # first one did at its peak.
        allowed = before[f"peak {thing}"] * (1 + RSS_GROWTH_MAX) if thing.startswith("rss") else held
        evidence = f"{held}, then {now.get(thing)}; at most {allowed:.0f}"
        report.claim(f"mixed: {thing} as before", now.get(thing, 0) <= allowed, evidence)


# What slowhttptest does: headers, then a body, that never end; an answer that is never read.
SLOW_CLIENTS = {
    "slow headers": ["-H", "-u", "{url}/healthz"],
    "slow bodies": ["-B", "-s", "1000000", "-u", "{url}/invoke/sha256"],
    "slow readers": ["-X", "-w", "1", "-y", "2", "-n", "10", "-k", "5", "-u", "{url}/metrics"],
}
SLOW_CONNECTIONS = 300
SLOW_SECONDS_MAX = 150
OTHERS_SECONDS_MAX = 2


def check_slow_clients(hearth, report):
    """While hundreds of connections dawdle the others are served, and the gateway lets go of every dawdler."""
    gateway = next(pid for pid in family(hearth.process.pid) if role(pid) == "gateway")
    body = (HERE.parent / "functions/sha256/testdata/input.jpg").read_bytes()
    for name, arguments in SLOW_CLIENTS.items():
        slowest, errors, held = 0.0, collections.Counter(), []
        fds = len(os.listdir(f"/proc/{gateway}/fd"))
        slow = subprocess.Popen(
            ["slowhttptest", "-c", str(SLOW_CONNECTIONS), "-r", str(SLOW_CONNECTIONS), "-i", "5", "-l", str(SLOW_SECONDS_MAX)]
            + [argument.format(url=hearth.url) for argument in arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )
        started = time.monotonic()
        while slow.poll() is None:
            held.append(len(os.listdir(f"/proc/{gateway}/fd")) - fds)
            began = time.monotonic()
            try:
                with urllib.request.urlopen(f"{hearth.url}/invoke/sha256", body, timeout=30) as answer:
                    answer.read()
            except OSError as error:
                errors[str(error)] += 1
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.2)
        report.claim(f"{name}: every other call is answered", not errors and slowest < OTHERS_SECONDS_MAX,
                     f"{len(held)} calls, slowest {slowest * 1000:.0f} ms {dict(errors) or ''}")
        # slowhttptest ends when it has no connection left. Where it gave up before, only what was held until then counts.
        gave_up = time.monotonic() - started >= SLOW_SECONDS_MAX - 1
        deadline = time.monotonic() + COUNTS_SECONDS_MAX
        while not gave_up and held[-1] > 0 and time.monotonic() < deadline:
            time.sleep(0.2)
            held.append(len(os.listdir(f"/proc/{gateway}/fd")) - fds)
        report.claim(f"{name}: the gateway lets go of them", max(held) >= SLOW_CONNECTIONS * 0.9 and held[-1] <= 0,
                     f"held {max(held)}, in the end {held[-1]}")


def check_list(functions, report):
    """A bundled function that no scenario calls would be an untested promise."""
    script = (HERE / "hearth.js").read_text(encoding="utf-8")
    listed = set(re.findall(r"\{ name: '([^']+)'", script))
    bundled = {tomllib.loads(path.read_text(encoding="utf-8"))["name"] for path in functions.glob("*/function.toml")}
    report.claim("every bundled function is in hearth.js", listed == bundled, ", ".join(sorted(listed ^ bundled)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hearth", required=True, help="the executable")
    parser.add_argument("--k6", default="k6", help="the k6 executable")
    parser.add_argument("--functions", type=pathlib.Path, default=HERE.parent / "functions")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "target" / "loadtest", help="for logs, summaries and the last scrape")
    parser.add_argument("--mixed-calls", type=int, default=10_000)
    parser.add_argument("scenarios", nargs="+", choices=["smoke", "steady", "mixed", "slow"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report()
    check_list(options.functions, report)

    hearth = Hearth(options.hearth, options.functions, options.out)
    try:
        if report.claim("hearth up gets READY", hearth.wait_ready()):
            instance = hearth.instance()
            for scenario in options.scenarios:
                if scenario == "mixed":
                    check_leaks(options, hearth, options.out, report)
                elif scenario == "slow":
                    check_slow_clients(hearth, report)
                else:
                    run_k6(options, scenario, hearth, options.out, report)
            (options.out / "metrics.prom").write_text(hearth.scrape(), encoding="utf-8")
            code = hearth.stop()
            report.claim("Ctrl-C stops it", code == 0, f"exit code {code}")
            left = leftovers(hearth.data, instance)
            report.claim("nothing of it is left", not left, "; ".join(left[:10]))
        else:
            print((options.out / "hearth.log").read_text(encoding="utf-8")[-4000:])
    finally:
        hearth.stop()
        shutil.rmtree(hearth.place, ignore_errors=True)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
