-- Version 2 of the log. Offsets are given out one by one under the write lock, so that a reader who has seen one has
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
    -- When it happened: seconds since 1970, and the nanosecond of that second.
    time integer not null,
    nanosecond integer not null,
    -- When it was stored: microseconds since 1970.
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
create index event_by_time on event (time, nanosecond);
create index event_by_correlation on event (correlation) where correlation is not null;

-- Rows below have a checksum that SQLite keeps itself, so that whoever updates them need not. A flipped bit in any of
-- its fields makes a row one that is not `intact`. `content` is the CRC-32 of what is too long to be in it.

-- A group on a pattern. Everything up to `cursor` is settled, and everything up to `reached` that has no row in
-- `delivery`.
create table subscription (
    id integer primary key,
    "group" text not null,
    pattern text not null,
    cursor integer not null,
    reached integer not null,
    -- How far it has come on parts of its pattern, where that is not `reached`: lists of [pattern, offset], in JSON. No
    -- offset: a row with another pattern of the group has the part.
    parts text,
    -- Who handles its events; until when (milliseconds since 1970) unless it says so again; how long it says so for.
    owner text,
    leased_until integer not null default 0,
    lease integer not null default 0,
    checksum text generated always as (
        "group" || ' ' || pattern || ' ' || cursor || ' ' || reached || ' ' || coalesce(parts, '-') || ' '
        || coalesce(owner, '-') || ' ' || leased_until || ' ' || lease
    ) stored,
    intact integer generated always as (
        checksum is "group" || ' ' || pattern || ' ' || cursor || ' ' || reached || ' ' || coalesce(parts, '-') || ' '
        || coalesce(owner, '-') || ' ' || leased_until || ' ' || lease
    ) virtual,
    unique ("group", pattern)
) strict;

create index subscription_by_owner on subscription (owner) where owner is not null;

-- What is not settled yet and not plain: overtaken by others, parked for a retry, or published again.
create table delivery (
    subscription integer not null references subscription (id) on delete cascade,
    offset integer not null,
    attempt integer not null,
    -- Nanoseconds since 1970; a text as in RFC 3339 where these do not fit.
    first_failed any,
    last_failed any,
    due any,
    -- 1 where a dead letter was published again, with its payload where that was mended; 2 where an earlier row of the
    -- group had it open, beyond where this one has reached.
    republished integer not null default 0,
    payload blob,
    content integer,
    checksum text generated always as (
        subscription || ' ' || offset || ' ' || attempt || ' ' || coalesce(first_failed, '-') || ' '
        || coalesce(last_failed, '-') || ' ' || coalesce(due, '-') || ' ' || republished || ' '
        || coalesce(length(payload), '-') || ' ' || coalesce(content, '-')
    ) stored,
    intact integer generated always as (
        checksum is subscription || ' ' || offset || ' ' || attempt || ' ' || coalesce(first_failed, '-') || ' '
        || coalesce(last_failed, '-') || ' ' || coalesce(due, '-') || ' ' || republished || ' '
        || coalesce(length(payload), '-') || ' ' || coalesce(content, '-')
    ) virtual,
    primary key (subscription, offset)
) strict, without rowid;

create index delivery_republished on delivery (subscription) where republished;

create table dead_letter (
    id integer primary key autoincrement,
    "group" text not null,
    offset integer not null references event (offset),
    handler text not null,
    kind text not null,
    reason text not null,
    attempts integer not null,
    -- As in `delivery`.
    first_failed any not null,
    last_failed any not null,
    -- The payload that was handled, where it is not the event's.
    payload blob,
    content integer not null,
    checksum text generated always as (
        "group" || ' ' || offset || ' ' || kind || ' ' || attempts || ' ' || first_failed || ' ' || last_failed || ' '
        || content
    ) stored,
    intact integer generated always as (
        checksum is "group" || ' ' || offset || ' ' || kind || ' ' || attempts || ' ' || first_failed || ' '
        || last_failed || ' ' || content
    ) virtual,
    unique ("group", offset)
) strict;

create index dead_letter_by_offset on dead_letter (offset);

-- For people.

create view events as
select
    e.offset,
    t.name as topic,
    -- SQLite knows no years before 0; 315569520000 seconds are 10,000 years, which begin on the same days.
    case when e.time >= -62167219200 then strftime('%Y-%m-%dT%H:%M:%S', e.time, 'unixepoch')
        else format('-%06d', 10000 - strftime('%Y', e.time + 315569520000, 'unixepoch'))
            || strftime('-%m-%dT%H:%M:%S', e.time + 315569520000, 'unixepoch')
        end || format('.%06dZ', e.nanosecond / 1000) as time,
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
    case typeof(l.last_failed) when 'integer'
        then strftime('%Y-%m-%dT%H:%M:%SZ', (l.last_failed - (l.last_failed % 1000000000 + 1000000000) % 1000000000)
            / 1000000000, 'unixepoch')
        else l.last_failed end as last_failed_at,
    l.handler, e.*
from dead_letter l join events e on e.offset = l.offset;
