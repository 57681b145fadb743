"""A service with the plain client of each broker: nats-py, redis-py, aio-pika, confluent-kafka.

    python plain_service.py 'nats://localhost?stream=SHOP&prefix=shop'

It publishes 200 events on `reading.taken`, which Rust programs handle, and reads 200 of theirs on `alarm.raised`.
"""

import asyncio
import json

from common import Seen, arguments, misfit, percent_decode, percent_encode, read, readings, ready, write

SOURCE = "/python/plain"
# A program that knows nothing of CloudEvents sends only this.
NOTICE = b'{"text": "plain"}'


async def on_nats(bus, seen):
    import nats

    stream, prefix = bus.option("stream", "EVENTBUS"), bus.option("prefix", "eventbus")
    client = await nats.connect(bus.server)
    jetstream = client.jetstream()
    # A consumer of our own, on the stream that the bus has made.
    alarms = await jetstream.pull_subscribe(f"{prefix}.alarm.raised", durable="python", stream=stream)
    ready()

    async def publish():
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            headers = write(attributes, "ce-", percent_encode) | {"Content-Type": "application/json"}
            await jetstream.publish(f"{prefix}.reading.taken", json.dumps(payload).encode(), headers=headers)
        await jetstream.publish(f"{prefix}.notice.sent", NOTICE)

    async def consume():
        while not seen.all:
            try:
                messages = await alarms.fetch(50, timeout=5)
            except nats.errors.TimeoutError:
                continue
            for message in messages:
                attributes, headers = read(message.headers, "ce-", percent_decode)
                seen.tell(attributes, headers, json.loads(message.data))
                await message.ack()

    await asyncio.gather(publish(), consume())
    await client.close()


async def on_redis(bus, seen):
    import redis.asyncio as redis

    prefix = bus.option("prefix", "eventbus")
    client = redis.from_url(bus.server)
    alarms = f"{prefix}:topic:alarm.raised"
    # A group of our own, from the first event on.
    await client.xgroup_create(alarms, "python", id="0", mkstream=True)
    ready()

    async def add(topic, fields):
        # Once for each topic, so that subscriptions to a pattern find it.
        await client.sadd(f"{prefix}:topics", topic)
        await client.xadd(f"{prefix}:topic:{topic}", fields)

    async def publish():
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            fields = write(attributes, "ce-") | {"content-type": "application/json", "data": json.dumps(payload)}
            await add("reading.taken", fields)
        await add("notice.sent", {"data": NOTICE})

    async def consume():
        while not seen.all:
            answer = await client.xreadgroup("python", "one", {alarms: ">"}, count=50, block=5_000)
            for _stream, entries in answer or []:
                for entry, fields in entries:
                    fields = {name.decode(): value for name, value in fields.items()}
                    payload = json.loads(fields.pop("data"))
                    attributes, headers = read(fields, "ce-", bytes.decode)
                    attributes["datacontenttype"] = attributes["datacontenttype"].decode()
                    headers = {name.removeprefix("h-"): value.decode() for name, value in headers.items()}
                    seen.tell(attributes, headers, payload)
                    await client.xack(alarms, "python", entry)

    await asyncio.gather(publish(), consume())
    await client.aclose()


async def on_rabbitmq(bus, seen):
    from aio_pika import DeliveryMode, Message, connect

    name = bus.option("exchange", "eventbus")
    connection = await connect(bus.server)
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(50)
    exchange = await channel.get_exchange(name)
    # A queue of our own: it has what is published from now on.
    alarms = await channel.declare_queue(f"{name}.python", durable=True)
    await alarms.bind(exchange, "alarm.raised")
    ready()

    async def publish():
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            message = Message(
                json.dumps(payload).encode(),
                headers=write(attributes, "ce-"),
                content_type="application/json",
                delivery_mode=DeliveryMode.PERSISTENT,
            )
            await exchange.publish(message, "reading.taken")
        await exchange.publish(Message(NOTICE), "notice.sent")

    async def consume():
        async with alarms.iterator() as messages:
            async for message in messages:
                attributes, headers = read(message.headers, "ce-")
                seen.tell(attributes, headers, json.loads(message.body))
                await message.ack()
                if seen.all:
                    return

    await asyncio.gather(publish(), consume())
    await connection.close()


async def on_kafka(bus, seen):
    from confluent_kafka import Consumer, Producer

    prefix = bus.option("prefix", "")

    def publish():
        # The partitioner of Java and of eventbus: one key is in one partition, whoever wrote it. The default of
        # librdkafka is another one.
        producer = Producer({
            "bootstrap.servers": bus.host,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
        })
        failed = []
        told = lambda error, message: failed.append(error) if error else None
        for attributes, payload in [*readings(SOURCE), misfit(SOURCE)]:
            headers = write(attributes, "ce_", str.encode) | {"content-type": b"application/json"}
            key = attributes["partitionkey"].encode()
            producer.produce(f"{prefix}reading.taken", json.dumps(payload), key, headers=headers, on_delivery=told)
        producer.produce(f"{prefix}notice.sent", NOTICE, b"k7", on_delivery=told)
        left = producer.flush(120)
        assert not failed and not left, (failed, left)

    def consume():
        consumer = Consumer({
            "bootstrap.servers": bus.host,
            "group.id": f"{prefix}python",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        })
        consumer.subscribe([f"{prefix}alarm.raised"])
        ready()
        while not seen.all:
            message = consumer.poll(5)
            if message is None or message.error():
                continue
            headers = {name: value.decode() for name, value in message.headers()}
            attributes, headers = read(headers, "ce_")
            key, partition = message.key().decode(), message.partition()
            seen.tell(attributes, headers, json.loads(message.value()), key=key, partition=partition)
            consumer.commit(message, asynchronous=True)
        consumer.close()

    await asyncio.gather(asyncio.to_thread(publish), asyncio.to_thread(consume))


SERVICES = {"nats": on_nats, "redis": on_redis, "valkey": on_redis, "amqp": on_rabbitmq, "kafka": on_kafka}

if __name__ == "__main__":
    bus = arguments()
    asyncio.run(SERVICES[bus.scheme](bus, Seen()))
