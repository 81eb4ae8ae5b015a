"""Soak: minutes of mixed traffic; every row is compared with the head it is said to be from, memory must be flat.

Under way at the same time: predictions of many users in one request, calibrations, clients that hang up, the model
under load swapped to another version and back, another model unloaded, loaded and asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import safetensors.numpy

from bench import machine, protocols, targets
from bench.bundles import Case, case, models_folder
from bench.heads import head, user_name
from bench.launch import headway
from bench.open_loop import Connections
from bench.places import HOME, RESULTS
from bench.processes import cost
from bench.targets import Target
from exporters import bundle as bundles
from models.heads.head import Head, softmax
from service.engine.runtime import Runtime

WINDOWS, CALIBRATED, ROWS = 64, 8, 16
TOLERANCE = 1e-3
SAMPLE_SECONDS = 2.0
GROWTH_MIB, GROWTH_DESCRIPTORS = 24, 8
SECOND = "semg-myo"
LEAST_MINUTES = 4
"""Of a soak whose growth says something: an unloaded version is kept for a minute, so memory rises at first."""


class Aside:
    """The model that comes and goes: windows, and what its shared head makes of them."""

    def __init__(self, model: Case) -> None:
        self.model, self.windows = model, model.windows(WINDOWS)
        features, prior = Runtime(model.bundle.backbone).run(self.windows), model.bundle.prior
        self.expected = softmax(Head(prior.generic_weight, prior.generic_bias).logits(features))


class Soak:
    """The traffic and what is known of it: windows, their features, users' heads by version, counts and faults."""

    def __init__(self, model: Case, url: str, count: int, folder: Path) -> None:
        self.model, self.url, self.count, self.folder = model, url, count, folder
        self.second = Aside(case(SECOND))
        self.windows = model.windows(WINDOWS)
        self.features = Runtime(model.bundle.backbone).run(self.windows)
        prior = model.bundle.prior
        self.shared = Head(prior.generic_weight, prior.generic_bias)
        self.heads: dict[tuple[str, int], Head] = {}
        self.newest: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.client = httpx.AsyncClient(base_url=url, timeout=30)
        self.connections = Connections(url)

    async def expected(self, user: str, version: int, window: int) -> Any:
        """Return the probabilities of a window by the head that an answer names."""
        if version == 0:
            own = self.shared
        elif version == 1 and user not in self.newest:
            own = head(int(user[1:]), self.model.classes, self.model.dim)
        else:
            own = self.heads.get((user, version)) or await self._weights(user, version)
        return softmax(own.logits(self.features[window][None])[0])

    async def _weights(self, user: str, version: int) -> Head:
        answer = await self.client.get(f"/v2/models/{self.model.name}/users/{user}/versions/{version}/weights")
        answer.raise_for_status()
        tensors = safetensors.numpy.load(answer.content)
        self.heads[user, version] = own = Head(tensors["weight"], tensors["bias"])
        return own

    async def predict(self, rng: np.random.Generator) -> None:
        """Ask for rows of many users in one request and look at every row."""
        who = [user_name(int(i)) for i in rng.integers(0, self.count + CALIBRATED, ROWS)]
        which = rng.integers(0, WINDOWS, ROWS)
        at_least = {user: self.newest.get(user, 0) for user in who}
        body = protocols.headway_rows(self.model, self.windows[which], who, ["probabilities", "head_version"])
        path = f"/v2/models/{self.model.name}/infer"
        status, content = await self.connections.post(path, body.filled(0), body.headers)
        self.counts[f"infer {status}"] += 1
        if status != 200:
            self._fault(f"infer answered {status}: {content[:200]!r}")
            return
        answer = json.loads(content)
        self.counts[f"answered by version {answer['model_version']}"] += 1
        outputs = {o["name"]: o for o in answer["outputs"]}
        rows = np.reshape(outputs["probabilities"]["data"], outputs["probabilities"]["shape"])
        for i, (user, version) in enumerate(zip(who, outputs["head_version"]["data"], strict=True)):
            if version < max(at_least[user], int(int(user[1:]) < self.count)):
                self._wrong(f"{user} was answered by version {version} after {at_least[user]} was active")
            error = np.abs(rows[i] - await self.expected(user, version, int(which[i]))).max()
            self.counts["rows checked"] += 1
            if not error < TOLERANCE:
                self._wrong(f"{user}, version {version}, window {which[i]}: off by {error:.2g}")

    async def calibrate(self, rng: np.random.Generator, user: str) -> None:
        """Calibrate a user anew; its answers must come from that version on."""
        labels = [self.model.bundle.manifest.labels[i % self.model.classes] for i in range(3 * self.model.classes)]
        which = rng.integers(0, WINDOWS, len(labels))
        noise = 0.1 * rng.standard_normal((len(labels), *self.model.shape))
        inputs = (self.windows[which] + noise).tolist()
        message = {"inputs": inputs, "labels": labels, "mode": "replace", "activate": "always"}
        answer = await self.client.post(f"/v2/models/{self.model.name}/users/{user}/calibrations", json=message)
        self.counts[f"calibration {answer.status_code}"] += 1
        if answer.status_code != 201:
            self._fault(f"a calibration answered {answer.status_code}: {answer.text[:200]}")
            return
        self.newest[user] = answer.json()["active_version"]

    async def hang_up(self, rng: np.random.Generator) -> None:
        """Begin a request and go away."""
        body = protocols.headway_rows(self.model, self.windows[:ROWS], [user_name(i) for i in range(ROWS)])
        share = float(rng.choice([0.3, 1.0]))
        path = f"/v2/models/{self.model.name}/infer"
        await self.connections.abandon(path, body.filled(0), body.headers, share)
        self.counts["hung up"] += 1

    async def reload(self, _rng: np.random.Generator) -> None:
        """Unload and load the other model."""
        for verb in ("unload", "load"):
            await self._repository(SECOND, verb, verb)

    async def swap(self, _rng: np.random.Generator) -> None:
        """Serve the model under load by a second version of the same graph, then by the first again."""
        added = self.folder / self.model.name / "2"
        if not added.exists():
            await asyncio.to_thread(_second_version, self.model, self.folder)
            await self._repository(self.model.name, "load", "swap to version 2")
        else:
            await asyncio.to_thread(shutil.rmtree, added)
            await self._repository(self.model.name, "load", "swap back")

    async def _repository(self, name: str, verb: str, what: str) -> None:
        answer = await self.client.post(f"/v2/repository/models/{name}/{verb}")
        self.counts[f"{what} {answer.status_code}"] += 1
        if answer.status_code >= 400:
            self._fault(f"{what} answered {answer.status_code}: {answer.text[:200]}")

    async def ask_other(self, rng: np.random.Generator) -> None:
        """Ask the model that comes and goes: its shared head answers, or it is not there."""
        own, index = self.second, int(rng.integers(WINDOWS))
        body = protocols.headway_rows(own.model, own.windows[index : index + 1], [user_name(0)])
        path = f"/v2/models/{SECOND}/infer"
        status, content = await self.connections.post(path, body.filled(0), body.headers)
        self.counts[f"other model {status}"] += 1
        if status == 200:
            outputs = {o["name"]: o for o in json.loads(content)["outputs"]}
            error = np.abs(np.asarray(outputs["probabilities"]["data"]) - own.expected[index]).max()
            self.counts["rows checked"] += 1
            if not error < TOLERANCE:
                self._wrong(f"{SECOND}, window {index}: off by {error:.2g}")
        elif status not in (404, 503):
            self._fault(f"{SECOND} answered {status}: {content[:200]!r}")

    def _wrong(self, what: str) -> None:
        self.counts["wrong rows"] += 1
        self._fault(what)

    def _fault(self, what: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < 20:
            self.faults.append(what)


async def run(soak: Soak, seconds: float, pid: int) -> list[dict[str, float]]:
    """Send the traffic for a while; returns memory and descriptors over time."""
    end, samples = time.monotonic() + seconds, []

    async def every(wait: float, seed: int, what: Any) -> None:
        rng = np.random.default_rng(seed)
        while time.monotonic() < end:
            await what(rng)
            await asyncio.sleep(wait)

    async def calibrations(rng: np.random.Generator) -> None:
        await soak.calibrate(rng, user_name(soak.count + int(rng.integers(CALIBRATED))))

    async def watch(_rng: np.random.Generator) -> None:
        used = await asyncio.to_thread(cost, pid)
        left = round(seconds - (end - time.monotonic()), 1)
        samples.append({"at": left, "mib": used.memory / 2**20, "descriptors": used.descriptors})

    kinds = [every(0, i, soak.predict) for i in range(4)]
    kinds += [every(0.5, 10, calibrations), every(0.1, 11, soak.hang_up), every(3, 12, soak.reload)]
    kinds += [every(4, 14, soak.swap), every(0.05, 15, soak.ask_other)]
    await asyncio.gather(*kinds, every(SAMPLE_SECONDS, 13, watch))
    soak.connections.close()
    await soak.client.aclose()
    return samples


def grown(samples: list[dict[str, float]]) -> dict[str, float]:
    """Compare the second quarter of the samples with the last one."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    return {
        k: float(np.median([s[k] for s in late]) - np.median([s[k] for s in early])) for k in ("mib", "descriptors")
    }


def _second_version(model: Case, folder: Path) -> None:
    """Write version 2 of the model: the same files, so that heads and answers are the same."""
    manifest = model.bundle.manifest
    files = {name: (model.bundle.path / name).read_bytes() for name in manifest.files}
    bundles.write(folder, manifest.model_copy(update={"version": 2}), files)


def _targets(soak: Soak, growth: dict[str, float], minutes: float) -> list[Target]:
    counts = soak.counts
    unanswered, judged = counts["infer 0"] + counts["other model 0"], minutes >= LEAST_MINUTES
    wanted = ("calibration 201", "hung up", "unload 200", "load 200", "swap to version 2 200", "swap back 200")
    done = ", ".join(f"{counts[what]} {what}" for what in wanted)
    fewest = min(counts[what] for what in wanted)
    return [
        Target("wrong rows", "0", f"{counts['wrong rows']} of {counts['rows checked']}", not counts["wrong rows"]),
        Target("requests without an answer", "0", str(unanswered), not unanswered),
        Target("other faults", "0", str(counts["faults"] - counts["wrong rows"]), counts["faults"] == 0),
        Target("everything took place", "each at least once", done, fewest > 0),
        *(
            Target(f"{name}, last quarter against second", f"< {most}", f"{growth[key]:+.1f}", fine if judged else None)
            for name, key, most, fine in (
                ("MiB of the tree", "mib", GROWTH_MIB, growth["mib"] < GROWTH_MIB),
                ("open descriptors", "descriptors", GROWTH_DESCRIPTORS, growth["descriptors"] < GROWTH_DESCRIPTORS),
            )
        ),
    ]


def main() -> None:
    """Soak, print it against the targets and write it; exit status 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--users", type=int, default=1000, help="stored users, beside those calibrated here")
    parser.add_argument("--frontends", type=int, help="of Headway; by default what it chooses itself")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    chosen = parser.parse_args()
    model, folder = case("fixed"), HOME / "soak"
    shutil.rmtree(folder, ignore_errors=True)
    for name in (model.name, SECOND):
        case(name)
        shutil.copytree(models_folder(name) / name, folder / "models" / name)
    served, store = folder / "models", folder / "store"
    with headway(model, chosen.users, frontends=chosen.frontends, models=served, store=store) as service:
        soak = Soak(model, service.url, chosen.users, served)
        samples = asyncio.run(run(soak, 60 * chosen.minutes, service.pid))
    growth = grown(samples)
    found = {"machine": machine.describe(), "minutes": chosen.minutes, "frontends": chosen.frontends}
    found |= {"counts": dict(sorted(soak.counts.items())), "faults": soak.faults, "growth": growth, "samples": samples}
    judged = _targets(soak, growth, chosen.minutes)
    print(json.dumps({"counts": found["counts"], "faults": soak.faults}, indent=1))
    targets.write(chosen.out, found, judged)
    sys.exit(1 if targets.missed(judged) else 0)


if __name__ == "__main__":
    main()
