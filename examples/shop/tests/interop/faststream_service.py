"""A service in FastStream, on each broker.

    python faststream_service.py 'nats://localhost?stream=SHOP&prefix=shop'

It publishes 200 events on `reading.taken`, which Rust programs handle, and reads 200 of theirs on `alarm.raised`.
"""

import asyncio

from pydantic import BaseModel

from common import Seen, arguments, misfit, percent_decode, percent_encode, read, readings, ready, write

SOURCE = "/python/faststream"
# A program that knows nothing of CloudEvents sends only this.
NOTICE = {"text": "faststream"}


class AlarmRaised(BaseModel):
    """As the Rust program has it, which made the JSON out of it."""

    sensor: str
    number: int


class Alarms:
    """Told of every alarm, and ends once all have come."""

    def __init__(self, seen):
        self.seen = seen
        self.ended = asyncio.Event()

    def tell(self, attributes, headers, alarm, **more):
        self.seen.tell(attributes, headers, alarm.model_dump(), **more)
        if self.seen.all:
            self.ended.set()


async def exchange_events(broker, alarms, publish):
    """Begins the subscriber, publishes, and ends once all alarms have come."""
    async with broker:
        await broker.start()
        ready()
        await publish()
        await alarms.ended.wait()


async def on_nats(bus, alarms):
    from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

    prefix = bus.option("prefix", "eventbus")
    # The stream is the bus's: without `declare=False` FastStream would give it settings of its own.
    stream = JStream(bus.option("stream", "EVENTBUS"), declare=False)
    broker = NatsBroker(bus.server, logger=None)

    # One at a time keeps the order: FastStream handles those that it pulls together at once.
    @broker.subscriber(f"{prefix}.alarm.raised", stream=stream, durable="python", pull_sub=PullSub())
    async def on_alarm(alarm: AlarmRaised, message: NatsMessage):
        attributes, headers = read(message.headers, "ce-", percent_decode)
        alarms.tell(attributes, headers, alarm)

    async def publish():
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            headers = write(attributes, "ce-", percent_encode)
            await broker.publish(payload, f"{prefix}.reading.taken", headers=headers, stream=stream.name)
        await broker.publish(NOTICE, f"{prefix}.notice.sent", stream=stream.name)

    await exchange_events(broker, alarms, publish)


async def on_redis(bus, alarms):
    from faststream.redis import RedisBroker, RedisStreamMessage, StreamSub

    prefix = bus.option("prefix", "eventbus")
    broker = RedisBroker(bus.server, logger=None)

    @broker.subscriber(
        stream=StreamSub(f"{prefix}:topic:alarm.raised", group="python", consumer="one", last_id="0")
    )
    async def on_alarm(alarm: AlarmRaised, message: RedisStreamMessage):
        # FastStream finds the payload by itself. What else an event says stands in the fields of its entry.
        fields = {name.decode(): value.decode() for name, value in message.raw_message["data"].items()}
        del fields["data"]
        attributes, headers = read(fields, "ce-")
        headers = {name.removeprefix("h-"): value for name, value in headers.items()}
        alarms.tell(attributes, headers, alarm)

    async def publish_on(topic, payload, headers=None):
        # Once for each topic, so that subscriptions to a pattern find it.
        client = await broker.connect()
        await client.sadd(f"{prefix}:topics", topic)
        await broker.publish(payload, stream=f"{prefix}:topic:{topic}", headers=headers)

    async def publish():
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            await publish_on("reading.taken", payload, write(attributes, "ce-"))
        await publish_on("notice.sent", NOTICE)

    await exchange_events(broker, alarms, publish)


async def on_rabbitmq(bus, alarms):
    from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

    name = bus.option("exchange", "eventbus")
    # The exchange is the bus's, and has to be there.
    exchange = RabbitExchange(name, type=ExchangeType.TOPIC, durable=True, declare=False)
    # A queue of our own: it has what is published from now on.
    queue = RabbitQueue(f"{name}.python", durable=True, routing_key="alarm.raised")
    # One at a time keeps the order: FastStream handles at once what RabbitMQ sends ahead.
    broker = RabbitBroker(bus.server, default_channel=Channel(prefetch_count=1), logger=None)

    @broker.subscriber(queue, exchange)
    async def on_alarm(alarm: AlarmRaised, message: RabbitMessage):
        attributes, headers = read(message.headers, "ce-")
        alarms.tell(attributes, headers, alarm)

    async def publish():
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            headers = write(attributes, "ce-")
            await broker.publish(payload, exchange=exchange, routing_key="reading.taken", headers=headers, persist=True)
        await broker.publish(NOTICE, exchange=exchange, routing_key="notice.sent", persist=True)

    await exchange_events(broker, alarms, publish)


async def on_kafka(bus, alarms):
    from faststream.kafka import KafkaBroker, KafkaMessage

    prefix = bus.option("prefix", "")
    broker = KafkaBroker(bus.host, logger=None)

    @broker.subscriber(f"{prefix}alarm.raised", group_id=f"{prefix}python", auto_offset_reset="earliest")
    async def on_alarm(alarm: AlarmRaised, message: KafkaMessage):
        attributes, headers = read(message.headers, "ce_")
        record = message.raw_message
        alarms.tell(attributes, headers, alarm, key=record.key.decode(), partition=record.partition)

    async def publish():
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            key = attributes["partitionkey"].encode()
            await broker.publish(payload, f"{prefix}reading.taken", key=key, headers=write(attributes, "ce_"))
        await broker.publish(NOTICE, f"{prefix}notice.sent", key=b"k7")

    await exchange_events(broker, alarms, publish)


SERVICES = {"nats": on_nats, "redis": on_redis, "valkey": on_redis, "amqp": on_rabbitmq, "kafka": on_kafka}

if __name__ == "__main__":
    bus = arguments()

    async def main():
        await SERVICES[bus.scheme](bus, Alarms(Seen()))

    asyncio.run(main())
