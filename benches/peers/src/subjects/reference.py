"""Does what it is told on its input, `WORK TIMES` a line, and answers how long each operation took."""

import json
import sys
import time
from urllib.parse import urlparse

import msgpack
from dogpile.cache import make_region
from dogpile.cache.api import CachedValue
from dogpile_backend_redis_advanced.cache.serializers import Serializer_PickleIntTime_ProxyBackend as Serializer


class Msgpack(Serializer):
    """Msgpack with the second of creation, as the README of the reference shows it."""

    def _serialize(self, value):
        return msgpack.packb([value.payload, int(value.metadata["ct"])])

    def _deserialize(self, serialized):
        payload, created = msgpack.unpackb(serialized)
        return CachedValue(payload, {"ct": created, "v": 2})


url = urlparse(sys.argv[1])
region = make_region().configure(
    "dogpile_backend_redis_advanced.already_serialized",
    expiration_time=3600,
    arguments={
        "host": url.hostname,
        "port": url.port or 6379,
        "username": url.username or None,
        "password": url.password,
        "db": int(url.path.strip("/") or 0),
        "redis_expiration_time": 300,
    },
    wrap=[Msgpack],
)


def profile():
    return {"id": 1234567, "name": "Ann Example", "score": 17.25, "active": True, "tags": ["reader", "editor"]}


VALUE = profile()
ONE = "python|one"
HUNDRED = [f"python|many-{at}" for at in range(100)]
missed = iter(f"python|missed-{time.time_ns()}-{at}" for at in range(10**9))


def get_many():
    assert all(region.get_multi(HUNDRED))


WORK = {
    "get_hit": lambda: region.get(ONE)["id"],
    "set": lambda: region.set(ONE, VALUE),
    "get_many_100": get_many,
    "get_or_create_hit": lambda: region.get_or_create(ONE, profile),
    "get_or_create_miss": lambda: region.get_or_create(next(missed), profile),
}

for line in sys.stdin:
    name, times = line.split()
    work, took = WORK[name], []
    region.set(ONE, VALUE)
    region.set_multi({key: profile() for key in HUNDRED})
    cpu = time.process_time_ns()
    for _ in range(int(times)):
        start = time.perf_counter_ns()
        work()
        took.append(time.perf_counter_ns() - start)
    print(json.dumps({"took": took, "cpu": time.process_time_ns() - cpu}), flush=True)
