"""Does with the reference's packages what it is told: a line of JSON is an order, and is answered by another."""

import datetime  # noqa: F401, for orders
import decimal  # noqa: F401, for orders
import json
import math
import pathlib  # noqa: F401, for orders
import sys
import threading
import time
import traceback

import msgpack
import redis
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from dogpile.cache.region import register_backend, value_version
from dogpile_backend_redis_advanced.cache import serializers
from dogpile_backend_redis_advanced.cache.backends.redis_advanced import RedisAdvancedHstoreBackend


class AlreadySerializedHstore(RedisAdvancedHstoreBackend):
    """What `already_serialized` is to the plain backend, for hashes; the package has none."""

    serializer = deserializer = None
    get = RedisAdvancedHstoreBackend.get_serialized
    get_multi = RedisAdvancedHstoreBackend.get_serialized_multi
    set = RedisAdvancedHstoreBackend.set_serialized
    set_multi = RedisAdvancedHstoreBackend.set_serialized_multi


register_backend("dogpile_backend_redis_advanced.hstore.already_serialized", __name__, "AlreadySerializedHstore")


def envelopes(dumps, loads):
    """Serializers of one format, as the reference's README has them: full metadata, the second, the payload only."""

    class Full(serializers._CustomSerializerProxyBackend):
        def _serialize(self, value):
            return dumps(value)

        def _deserialize(self, entry):
            return loads(entry)

    class Seconds(serializers._CustomSerializerProxyBackend):
        def _serialize(self, value):
            return dumps([value.payload, int(value.metadata["ct"])])

        def _deserialize(self, entry):
            payload, created = loads(entry)
            return payload, {"ct": created, "v": value_version}

    class Bare(serializers._CustomSerializerNoMetaProxyBackend):
        _serialize, _deserialize = Full._serialize, Full._deserialize

    return {"full": Full, "seconds": Seconds, "bare": Bare}


def dump_json(value):
    return json.dumps(value).encode()


# Serializers that write whole entries, for the backends `already_serialized`.
WRAPS = {
    **{f"msgpack.{name}": wrap for name, wrap in envelopes(msgpack.packb, msgpack.unpackb).items()},
    **{f"json.{name}": wrap for name, wrap in envelopes(dump_json, json.loads).items()},
    "pickle.seconds": serializers.Serializer_PickleIntTime_ProxyBackend,
    "pickle.bare": serializers.Serializer_PickleNoMeta_ProxyBackend,
    "raw": serializers.Serializer_Raw_ProxyBackend,
}
# Serializers of payloads, to which dogpile.cache adds metadata of its own.
PAYLOADS = {
    "pickle.own": {},
    "json.own": {"serializer": dump_json, "deserializer": json.loads},
    "msgpack.own": {"serializer": msgpack.packb, "deserializer": msgpack.unpackb},
}


def tagged(value):
    """A value as JSON that tells all types apart that Rust tells apart."""
    if value is NO_VALUE:
        return {"$": "missing"}
    if isinstance(value, (bytes, bytearray)):
        return {"$": "bytes", "hex": value.hex()}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return {"$": "int", "digits": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$": "float", "digits": str(value)}
    if isinstance(value, (list, tuple, set)):
        return [tagged(item) for item in value]
    if isinstance(value, dict):
        return {key: tagged(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} is of no type that is known here")


def untagged(value):
    match value:
        case {"$": "bytes", "hex": digits}:
            return bytes.fromhex(digits)
        case {"$": "int", "digits": digits}:
            return int(digits)
        case {"$": "float", "digits": digits}:
            return float(digits)
        case {"$": "python", "expression": expression}:
            return eval(expression)
        case list():
            return [untagged(item) for item in value]
        case dict():
            return {key: untagged(item) for key, item in value.items()}
        case _:
            return value


def key_of(key):
    """A plain key, or a pair."""
    return tuple(key) if isinstance(key, list) else key


class Peer:
    """What it can be told to do."""

    def open(self, port, backend, codec, name=None, expires=None, **arguments):
        self.name = name
        self.redis = redis.Redis(port=port)
        arguments |= {"port": port, "thread_local_lock": False}
        if codec in WRAPS:
            backend, wrap = backend + ".already_serialized", [WRAPS[codec]]
        else:
            wrap = []
        self.region = make_region(**PAYLOADS.get(codec, {}))
        self.region.configure(backend, expiration_time=expires, arguments=arguments, wrap=wrap)

    def set(self, entries, many=False):
        entries = {key_of(key): untagged(value) for key, value in entries}
        if many:
            return self.region.set_multi(entries)
        for key, value in entries.items():
            self.region.set(key, value)

    def get(self, keys, many=False):
        keys = [key_of(key) for key in keys]
        values = self.region.get_multi(keys) if many else map(self.region.get, keys)
        return [tagged(value) for value in values]

    def created(self, key):
        """When the value was created, and its version."""
        value = self.region.get_value_metadata(key_of(key))
        return [value.cached_time, value.metadata["v"]]

    def delete(self, keys, many=False):
        keys = [key_of(key) for key in keys]
        if many:
            return self.region.delete_multi(keys)
        for key in keys:
            self.region.delete(key)

    def get_or_create(self, key, callers=1, millis=0):
        """So many callers at once. Whoever creates says so in a list of the server."""
        key, values = key_of(key), []

        def create():
            number = self.redis.rpush("creators", self.name)
            time.sleep(millis / 1000)
            return f"{self.name}'s, number {number}"

        threads = [
            threading.Thread(target=lambda: values.append(self.region.get_or_create(key, create)))
            for _ in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [tagged(value) for value in values]

    def call(self, arguments, namespace=None):
        """Calls a cached function, and says what its key is."""

        @self.region.cache_on_arguments(namespace=namespace)
        def joined(*arguments):
            return "Python's " + repr(arguments)

        arguments = [untagged(argument) for argument in arguments]
        key = self.region.function_key_generator(namespace, joined.original)(*arguments)
        return [key, joined(*arguments)]


peer = Peer()
for line in sys.stdin:
    order = json.loads(line)
    try:
        answer = {"answer": getattr(peer, order.pop("do"))(**order)}
    except Exception:
        answer = {"error": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
