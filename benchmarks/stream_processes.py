"""The processes of the stream's benchmark: who sends behaviors, and who applies them."""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from zlib import crc32

STEP_S = 0.005


def cpu_s() -> float:
    """Processor seconds of this process, its threads included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class ToRedis:
    """Entries appended by a socket, as fast as Python can: the load must not be what is measured."""

    def __init__(self, port: int, keys: list[str]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.heads = [
            f"*5\r\n$4\r\nXADD\r\n${len(key)}\r\n{key}\r\n$1\r\n*\r\n$8\r\nbehavior\r\n".encode() for key in keys
        ]

    def send(self, messages: list[tuple[int, bytes]]) -> None:
        """Append messages, each to its partition; returns when the server has them."""
        self.socket.sendall(b"".join(b"%b$%d\r\n%b\r\n" % (self.heads[p], len(text), text) for p, text in messages))
        left = 2 * len(messages)
        while left > 0:
            left -= self.socket.recv(1 << 16).count(b"\r\n")

    def close(self) -> None:
        """Nothing waits."""


class ToKafka:
    """Messages to librdkafka's mock cluster, which lives in this very process."""

    def __init__(self, topic: str) -> None:
        import confluent_kafka

        self.topic = topic
        self.producer = confluent_kafka.Producer(
            {"test.mock.num.brokers": 1, "linger.ms": 1, "queue.buffering.max.messages": 1_000_000, "log_level": 0}
        )
        found = self.producer.list_topics(topic, timeout=10).brokers.values()
        self.brokers = ",".join(f"{each.host}:{each.port}" for each in found)

    def send(self, messages: list[tuple[int, bytes]]) -> None:
        """Hand messages over, each to its partition."""
        for partition, text in messages:
            self.producer.produce(self.topic, text, partition=partition)
        self.producer.poll(0)

    def close(self) -> None:
        """Wait until all are with the brokers."""
        self.producer.flush(30)


def generate(options: argparse.Namespace) -> None:
    """Send clicks at the rates that come in on stdin (``rate seconds first``); answers with what it took."""
    import numpy as np

    users, articles = (np.load(options.folder / f"{name}.npy").tolist() for name in ("users", "articles"))
    partition_of = {user: crc32(str(user).encode()) % options.partitions for user in set(users)}
    if options.kafka:
        target: Any = ToKafka(options.kafka)
        print(json.dumps({"brokers": target.brokers}), flush=True)
    else:
        target = ToRedis(options.port, json.loads(options.keys))
        print(json.dumps({}), flush=True)
    for line in sys.stdin:
        rate, seconds, at = (int(part) for part in line.split())
        began, used, sent, late = time.time(), cpu_s(), 0, 0.0
        while sent < rate * seconds:
            due = min(int((time.time() - began) * rate), rate * seconds)
            messages = []
            for number in range(at + sent, at + due):
                user = users[number % len(users)]
                # A click's time is when it was due: what the generator is late counts as well.
                us = round((began + (number - at) / rate) * 1e6)
                text = b'{"user_id":%d,"article_id":%d,"at":%d,"id":"g%d"}' % (
                    user, articles[number % len(users)], us, number,
                )  # fmt: skip
                messages.append((partition_of[user], text))
            if messages:
                target.send(messages)
                late = max(late, time.time() - began - (sent / rate))
            sent = due
            time.sleep(STEP_S)
        target.close()
        spent = time.time() - began
        print(json.dumps({"cpu": (cpu_s() - used) / spent, "sent": sent, "began": began, "late": late}), flush=True)


def work(options: argparse.Namespace) -> None:
    """One worker; writes when each tick was servable, and at the end what it took."""
    warnings.simplefilter("ignore")
    import torch
    from feast import FeatureStore

    torch.set_num_threads(1)
    from feast_embeddings.materialize.stream import SourceOptions, StreamOptions, make_worker

    os.chdir(options.folder)
    out = Path(f"ticks-{os.getpid()}.jsonl").open("w", buffering=1)  # noqa: SIM115 - it lasts as long as the process

    def on_tick(applied: Any, us: int) -> None:
        record = {"tick": applied.tick.number, "us": us, "read": applied.found.counts["read"], "cpu": cpu_s()}
        out.write(json.dumps({**record, **applied.seconds}) + "\n")

    source = SourceOptions("kafka", options.brokers, options.kafka) if options.kafka else SourceOptions()
    choice = StreamOptions(
        lanes=options.workers,
        partitions=options.partitions,
        max_events=options.max_events,
        every_s=options.every_ms / 1e3,
    )
    worker = make_worker(FeatureStore("."), "user_embedding", source, choice, on_tick=on_tick)
    with worker.stopping_on_signals():
        print("ready", flush=True)
        worker.run()


def main() -> None:
    """The command line of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["generate", "work"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--keys", default="[]")
    parser.add_argument("--kafka", default="", help="the topic")
    parser.add_argument("--brokers", default="")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-events", type=int, default=2000)
    parser.add_argument("--every-ms", type=float, default=20)
    options = parser.parse_args()
    (generate if options.role == "generate" else work)(options)


if __name__ == "__main__":
    main()
