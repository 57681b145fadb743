-- Version 3 of the log. Whoever runs this lets go of foreign keys meanwhile, since a table that others refer to is made
-- anew.

-- Whether the process that handled a group has left it in order. It is part of the row's checksum, so the column cannot
-- be added.
-- What is damaged must not become whole by that: then nothing is changed.
create temp table earlier as
select id, "group", pattern, iif(intact, cursor, null) as cursor, reached, parts, owner, leased_until, lease
from subscription;
drop table subscription;

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
    -- 1 where its owner has ended and not left it; 2 while its owner is shut down, whose end then counts nothing.
    unclean integer not null default 0,
    checksum text generated always as (
        "group" || ' ' || pattern || ' ' || cursor || ' ' || reached || ' ' || coalesce(parts, '-') || ' '
        || coalesce(owner, '-') || ' ' || leased_until || ' ' || lease || ' ' || unclean
    ) stored,
    intact integer generated always as (
        checksum is "group" || ' ' || pattern || ' ' || cursor || ' ' || reached || ' ' || coalesce(parts, '-') || ' '
        || coalesce(owner, '-') || ' ' || leased_until || ' ' || lease || ' ' || unclean
    ) virtual,
    unique ("group", pattern)
) strict;

create index subscription_by_owner on subscription (owner) where owner is not null;

insert into subscription (id, "group", pattern, cursor, reached, parts, owner, leased_until, lease)
select id, "group", pattern, cursor, reached, parts, owner, leased_until, lease from earlier;
drop table earlier;

-- What may have ended a process, as far as handlers had it when one ended.
create table if not exists suspect (
    "group" text not null,
    offset integer not null,
    -- How often the process ended while it was alone in a handler.
    crashes integer not null default 0,
    -- How often it took so long that others were handled beside it.
    outlasted integer not null default 0,
    -- 1 while it is in a handler beside others, 2 while it is there alone.
    begun integer not null default 0,
    checksum text generated always as (
        "group" || ' ' || offset || ' ' || crashes || ' ' || outlasted || ' ' || begun
    ) stored,
    intact integer generated always as (
        checksum is "group" || ' ' || offset || ' ' || crashes || ' ' || outlasted || ' ' || begun
    ) virtual,
    primary key ("group", offset)
) strict, without rowid;

-- A payload that was mended stays with its event, for whatever delivers that to its group again: a replay, a rebuild, a
-- cursor that was moved back.

create table mended (
    "group" text not null,
    offset integer not null references event (offset) on delete cascade,
    payload blob not null,
    -- CRC-32 of the payload.
    content integer not null,
    checksum text generated always as ("group" || ' ' || offset || ' ' || length(payload) || ' ' || content) stored,
    intact integer generated always as (
        checksum is "group" || ' ' || offset || ' ' || length(payload) || ' ' || content
    ) virtual,
    primary key ("group", offset)
) strict, without rowid;

create index mended_by_offset on mended (offset);

-- For people: a payload is text by its media type alone.

drop view events;
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
    -- Without a media type it is taken for JSON; parameters say nothing about that.
    case when e.content_type is null or trim(substr(e.content_type || ';', 1, instr(e.content_type || ';', ';') - 1)) = ''
            or substr(e.content_type || ';', 1, instr(e.content_type || ';', ';') - 1) like '%json%'
            or trim(e.content_type) like 'text/%'
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
