-- Version 3 of the log: a payload that was mended stays with its event, for whatever delivers that to its group again: a
-- replay, a rebuild, a cursor that was moved back.

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
