-- Version 1 of the log. Offsets are given out one by one under the write lock, so that a reader who has seen one has
-- seen all before it.

create table topic (
    id integer primary key,
    name text not null unique
) strict;

-- The CloudEvents `source` of events; there are few of them.
create table source (
    id integer primary key,
    name text not null unique
) strict;

create table event (
    offset integer primary key,
    topic integer not null references topic (id),
    -- 16 bytes where it is a UUID, text where it is not.
    id any not null,
    source integer not null references source (id),
    -- None: the topic.
    type text,
    version integer not null,
    -- Nanoseconds since 1970: when it happened, and when it was stored.
    time integer not null,
    stored integer not null,
    subject text,
    key text,
    -- None: application/json.
    content_type text,
    -- None: the event's own id.
    correlation any,
    causation any,
    causation_depth integer not null,
    -- A JSON object; none: no headers.
    headers text,
    payload blob not null,
    -- CRC-32 of the row.
    checksum integer not null
) strict;

create unique index event_by_id on event (id, source);
create index event_by_topic on event (topic);
create index event_by_time on event (time);
create index event_by_correlation on event (correlation) where correlation is not null;

-- A group on a pattern. Everything up to `cursor` is settled, and everything up to `reached` that has no row in
-- `delivery`.
create table subscription (
    id integer primary key,
    "group" text not null,
    pattern text not null,
    cursor integer not null,
    reached integer not null,
    -- Who handles its events; until when (milliseconds since 1970) unless it says so again; how long it says so for.
    owner text,
    leased_until integer not null default 0,
    lease integer not null default 0,
    -- Written by SQLite: a flipped bit in the numbers must not pass for progress.
    checksum integer generated always as (cursor % 1000003 + reached % 999983 * 3) stored,
    intact integer generated always as (checksum = cursor % 1000003 + reached % 999983 * 3) virtual,
    unique ("group", pattern)
) strict;

-- What is not settled yet and not plain: overtaken by others, parked for a retry, or published again.
create table delivery (
    subscription integer not null references subscription (id) on delete cascade,
    offset integer not null,
    attempt integer not null,
    first_failed integer,
    last_failed integer,
    due integer,
    -- Set where a dead letter was published again; with its payload where that was mended.
    republished integer not null default 0,
    payload blob,
    checksum integer generated always as (
        subscription + offset % 1000003 + attempt + coalesce(first_failed % 1000003, -1)
        + coalesce(last_failed % 1000003, -1) + coalesce(due % 1000003, -1) + republished
        + coalesce(length(payload), -1)
    ) stored,
    intact integer generated always as (
        checksum = subscription + offset % 1000003 + attempt + coalesce(first_failed % 1000003, -1)
        + coalesce(last_failed % 1000003, -1) + coalesce(due % 1000003, -1) + republished
        + coalesce(length(payload), -1)
    ) virtual,
    primary key (subscription, offset)
) strict, without rowid;

create table dead_letter (
    id integer primary key autoincrement,
    "group" text not null,
    offset integer not null references event (offset),
    handler text not null,
    kind text not null,
    reason text not null,
    attempts integer not null,
    first_failed integer not null,
    last_failed integer not null,
    -- The payload that was handled, where it is not the event's.
    payload blob,
    unique ("group", offset)
) strict;

create index dead_letter_by_offset on dead_letter (offset);

-- For people.

create view events as
select
    e.offset,
    t.name as topic,
    strftime('%Y-%m-%dT%H:%M:', e.time / 1000000000, 'unixepoch')
        || format('%09.6fZ', e.time / 1000000000 % 60 + e.time % 1000000000 / 1e9) as time,
    e.key,
    case when e.content_type is null or e.content_type like '%json%' or e.content_type like 'text/%'
        then cast(e.payload as text) else hex(e.payload) end as payload,
    coalesce(e.type, t.name) as type,
    e.version,
    case typeof(e.id) when 'blob' then lower(format('%s-%s-%s-%s-%s', substr(hex(e.id), 1, 8), substr(hex(e.id), 9, 4),
        substr(hex(e.id), 13, 4), substr(hex(e.id), 17, 4), substr(hex(e.id), 21))) else e.id end as id,
    s.name as source,
    e.subject,
    case typeof(e.correlation) when 'blob' then lower(format('%s-%s-%s-%s-%s', substr(hex(e.correlation), 1, 8),
        substr(hex(e.correlation), 9, 4), substr(hex(e.correlation), 13, 4), substr(hex(e.correlation), 17, 4),
        substr(hex(e.correlation), 21))) else e.correlation end as correlationid,
    case typeof(e.causation) when 'blob' then lower(format('%s-%s-%s-%s-%s', substr(hex(e.causation), 1, 8),
        substr(hex(e.causation), 9, 4), substr(hex(e.causation), 13, 4), substr(hex(e.causation), 17, 4),
        substr(hex(e.causation), 21))) else e.causation end as causationid,
    coalesce(e.content_type, 'application/json') as datacontenttype,
    e.headers
from event e join topic t on t.id = e.topic join source s on s.id = e.source;

create view groups as
select
    "group", pattern, cursor, owner is not null as active,
    (select count(*) from delivery d where d.subscription = s.id) as unfinished,
    (select count(*) from dead_letter l where l."group" = s."group") as dead_letters
from subscription s;

create view dead_letters as
select
    l.id, l."group", l.kind, l.reason, l.attempts,
    strftime('%Y-%m-%dT%H:%M:%SZ', l.last_failed / 1000000000, 'unixepoch') as last_failed_at,
    l.handler, e.*
from dead_letter l join events e on e.offset = l.offset;
