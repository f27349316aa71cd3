"""Fills a server with the data set by a strategy of the reference, as its demo does: fill.py STRATEGY PORT INTEGERS
NAMED [CREATED]. Prints again and again how many entries there are, and after how many seconds."""

import json
import sys
import time
from types import SimpleNamespace

import dogpile.cache.region
import msgpack
from dogpile.cache import make_region
from dogpile.cache.proxy import ProxyBackend
from dogpile.cache.region import register_backend
from dogpile_backend_redis_advanced.cache.backends.redis_advanced import RedisAdvancedHstoreBackend

PAIRS = ("foo", "foobar", "foobarbiz", "foobarbizbash", "foobarbizbashfizzbuzz", "fizzbuzz")
TEXTS = ("qkknasdkk", "kehzipqyfnslhtqnzjsgqolf", "7124n9jasdgqbozjayqkdhag", "61jkansd89asd")
HUNDRED = 100


class AlreadySerializedHstore(RedisAdvancedHstoreBackend):
    """What `already_serialized` is to the plain backend, for hashes; the package has none."""

    serializer = deserializer = None
    set_multi = RedisAdvancedHstoreBackend.set_serialized_multi


register_backend("dogpile_backend_redis_advanced.hstore.already_serialized", __name__, "AlreadySerializedHstore")


def already_serialized(dumps, kept):
    """A proxy that writes what is kept of a value, as those of the reference's README."""

    class Serializer(ProxyBackend):
        def set_multi(self, mapping):
            self.proxied.set_multi({key: dumps(kept(value)) for key, value in mapping.items()})

    return Serializer


def region_of(strategy, port):
    name = strategy.removeprefix("region_")
    arguments = {"host": "127.0.0.1", "port": port}
    if "_local" not in name:
        arguments["redis_expiration_time"] = 3600
    if name.startswith("redis"):
        return make_region().configure("dogpile.cache.redis", expiration_time=3600, arguments=arguments)
    dumps = msgpack.packb if name.startswith("msgpack") else lambda value: json.dumps(value).encode()
    if "_raw" in name:
        wrap = already_serialized(dumps, lambda value: value.payload)
    elif name.endswith("_int"):
        wrap = already_serialized(dumps, lambda value: (value.payload, int(value.metadata["ct"])))
    else:
        wrap = already_serialized(dumps, tuple)
    backend = "dogpile_backend_redis_advanced" + (".hstore" if name.endswith("_hash") else "") + ".already_serialized"
    return make_region().configure(backend, expiration_time=3600, arguments=arguments, wrap=[wrap])


def mappings(hashes, integers, named):
    """The data set, a hundred entries at a time."""

    def keyed(count, key, value):
        for start in range(0, count, HUNDRED):
            yield {key(x): value(x) for x in range(start, min(start + HUNDRED, count))}

    yield from keyed(integers, lambda x: (str(x // 100 * 100), str(x)) if hashes else str(x), lambda x: x * 10)
    for prefix in PAIRS + TEXTS:
        key = (lambda x: (prefix, str(x))) if hashes else (lambda x: f"{prefix}|{x}")
        yield from keyed(named, key, (lambda x: {"one": x * 399, "two": prefix}) if prefix in PAIRS else lambda _: prefix)


strategy, port, integers, named, *created = sys.argv[1:]
if created:
    dogpile.cache.region.time = SimpleNamespace(time=lambda: float(created[0]))
region = region_of(strategy, int(port))
written, begun, said = 0, time.monotonic(), 0
for mapping in mappings(strategy.endswith("_hash"), int(integers), int(named)):
    # The region puts cached values in place of these.
    count = len(mapping)
    region.set_multi(mapping)
    written, elapsed = written + count, time.monotonic() - begun
    if elapsed - said > 0.1:
        said = elapsed
        print(written, elapsed, flush=True)
print(written, time.monotonic() - begun)
