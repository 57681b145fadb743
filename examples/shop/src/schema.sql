-- The shop's own tables, in a file of their own: the log is another one.

-- What the producer saves.
create table if not exists orders (
    id text primary key,
    name text not null,
    email text not null,
    items text not null, -- JSON
    placed_at text not null,
    status text not null default 'placed'
) strict, without rowid;

-- What the consumers keep, each for itself.

-- The mails that went out, in place of a mail server.
create table if not exists sent_mail (
    order_id text primary key,
    recipient text not null,
    text text not null
) strict, without rowid;

create table if not exists sales (
    sku text primary key,
    ordered integer not null,
    revenue_cents integer not null
) strict, without rowid;

create table if not exists stock (
    sku text primary key,
    left integer not null check (left >= 0)
) strict, without rowid;

create table if not exists reservation (
    order_id text primary key
) strict, without rowid;

create table if not exists orders_by_day (
    day text primary key,
    orders integer not null,
    revenue_cents integer not null
) strict, without rowid;

-- Which events each consumer has handled; see inbox.rs.
create table if not exists inbox (
    consumer text not null,
    source text not null,
    event_id text not null,
    primary key (consumer, source, event_id)
) strict, without rowid;
