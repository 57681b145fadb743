"""What both services share: the events of this example, and how each broker carries the attributes of CloudEvents."""

import json
import sys
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

COUNT = 200
KEYS = 8


class Bus:
    """The address of a bus, as the Rust programs have it: the server, and the names that are used on it."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.server = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        self.host = parts.netloc
        self.options = parse_qs(parts.query)

    def option(self, name, default):
        return self.options.get(name, [default])[0]


def readings(source):
    """What this service publishes on `reading.taken`: the attributes of each event, and its payload."""
    for number in range(COUNT):
        sensor = f"Fühler {number % KEYS}"
        attributes = {
            "specversion": "1.0",
            "id": f"reading-{number}",
            "source": source,
            "type": "reading.taken",
            "time": "2026-03-01T12:00:00.25Z",
            "subject": f"reading {number}",
            # Events of one key are handled in order.
            "partitionkey": sensor,
        }
        yield attributes, {"sensor": sensor, "number": number}


def misfit(source):
    """An event whose payload is not what its type promises."""
    attributes, _ = next(readings(source))
    return attributes | {"id": "misfit"}, {"sensor": 7}


class Seen:
    """Tells what came on `alarm.raised`: a line of JSON for each event, once."""

    def __init__(self):
        self.ids = set()

    def tell(self, attributes, headers, payload, **more):
        # A broker may deliver an event twice, and its id tells.
        if attributes["id"] in self.ids:
            return
        self.ids.add(attributes["id"])
        seen = {"attributes": attributes, "headers": headers, "payload": payload, **more}
        print(json.dumps(seen), flush=True)

    @property
    def all(self):
        return len(self.ids) >= COUNT


def ready():
    """From now on nothing that is published is missed."""
    print("ready", flush=True)


def write(attributes, prefix, encode=str):
    """Attributes as headers."""
    return {f"{prefix}{name}": encode(value) for name, value in attributes.items()}


def read(headers, prefix, decode=str):
    """The attributes in headers, and the other headers."""
    attributes, others = {}, {}
    for name, value in headers.items():
        if name.startswith(prefix):
            attributes[name.removeprefix(prefix)] = decode(value)
        elif name == "content-type":
            attributes["datacontenttype"] = value
        else:
            others[name] = value
    return attributes, others


def percent_encode(value):
    """On NATS attributes are percent-encoded, since headers there are plain ASCII."""
    return quote(value, safe="!#$&'()*+,/:;=?@[]~")


percent_decode = unquote


def arguments():
    return Bus(sys.argv[1])
