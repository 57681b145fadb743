-- Moves, renames or removes a group on some of its patterns, as a whole or not at all.
--
-- ARGV: prefix, token of the call, milliseconds for which it is remembered, what ('seek', 'rename', 'remove'), group, place or new name, '1' where that is the whole group, how many
-- patterns, these, then the topics that they cover and no other pattern of the group does.
-- Answers 1, 0 where there is no such group, or the name of the group that a process handles.
local prefix, done, keep = ARGV[1], ARGV[1] .. 'done:' .. ARGV[2], ARGV[3]
local what, group, target, whole = ARGV[4], ARGV[5], ARGV[6], ARGV[7] == '1'
local count = tonumber(ARGV[8])
-- Its answer was lost with a connection.
if redis.call('EXISTS', done) == 1 then
  return 1
end
local registry = prefix .. 'group:' .. group
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

local function is_handled(name, pattern)
  local of = name .. ' ' .. pattern
  return redis.call('EXISTS', prefix .. 'lease:' .. of) == 1
    or redis.call('ZCOUNT', prefix .. 'members:' .. of, now, '+inf') > 0
end
local known = false
for at = 9, 8 + count do
  if redis.call('HEXISTS', registry, ARGV[at]) == 1 then
    known = true
  end
  if is_handled(group, ARGV[at]) then
    return group
  end
  if what == 'rename' and is_handled(target, ARGV[at]) then
    return target
  end
end
if not known then
  return 0
end
if what == 'rename' and group == target then
  return 1
end

local function less(one, other)
  local a, b = string.match(one, '^(%d+)-(%d+)$')
  local c, d = string.match(other, '^(%d+)-(%d+)$')
  -- As texts of one length, since not every number of 64 bits is one here.
  local function pad(text)
    return string.rep('0', 20 - #text) .. text
  end
  return pad(a) .. pad(b) < pad(c) .. pad(d)
end
-- How far a group has come in a stream, and what it has not finished.
local function reading(stream, name)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then
    return nil
  end
  for _, reader in ipairs(groups) do
    local facts = {}
    for at = 1, #reader, 2 do
      facts[reader[at]] = reader[at + 1]
    end
    if facts['name'] == name then
      local pending, from = {}, '-'
      while true do
        local page = redis.call('XPENDING', stream, name, from, '+', 500)
        if #page == 0 then
          break
        end
        for _, delivery in ipairs(page) do
          pending[#pending + 1] = { delivery[1], delivery[4] }
          from = '(' .. delivery[1]
        end
      end
      return facts['last-delivered-id'], pending, facts['entries-read']
    end
  end
end
-- What is noted of the deliveries of a topic, of either kind.
local function noted(kind, topic)
  local fields = {}
  for _, field in ipairs(redis.call('HKEYS', prefix .. kind .. group)) do
    local of = string.match(field, '^again/(.*)/[^/]*$') or string.match(field, '^(.*)/[^/]*$')
    if of == topic then
      fields[#fields + 1] = field
    end
  end
  return fields
end

for at = 9 + count, #ARGV do
  local topic = ARGV[at]
  local stream, again = prefix .. 'topic:' .. topic, prefix .. 'again:' .. group .. ':' .. topic
  local last, pending, read = reading(stream, group)
  local notes = { ['parked:'] = noted('parked:', topic), ['suspects:'] = noted('suspects:', topic) }
  if what == 'rename' then
    if last then
      local _, others = reading(stream, target)
      redis.call('XGROUP', 'DESTROY', stream, target)
      if read then
        redis.call('XGROUP', 'CREATE', stream, target, last, 'ENTRIESREAD', read)
      else
        redis.call('XGROUP', 'CREATE', stream, target, last)
      end
      -- What the other group had open and does not meet again stays open.
      for _, delivery in ipairs(others or {}) do
        if not less(last, delivery[1]) then
          pending[#pending + 1] = delivery
        end
      end
      for _, delivery in ipairs(pending) do
        redis.call('XCLAIM', stream, target, 'moved', 0, delivery[1], 'RETRYCOUNT', delivery[2], 'FORCE', 'JUSTID')
      end
      redis.call('XGROUP', 'DESTROY', stream, group)
    end
    for kind, fields in pairs(notes) do
      for _, field in ipairs(fields) do
        redis.call('HSET', prefix .. kind .. target, field, redis.call('HGET', prefix .. kind .. group, field))
      end
    end
    if redis.call('EXISTS', again) == 1 then
      local to = prefix .. 'again:' .. target .. ':' .. topic
      redis.pcall('XGROUP', 'CREATE', to, target, '0-0', 'MKSTREAM')
      for _, entry in ipairs(redis.call('XRANGE', again, '-', '+')) do
        redis.call('XADD', to, '*', unpack(entry[2]))
      end
      redis.call('SADD', prefix .. 'agains:' .. target, topic)
    end
  elseif what == 'remove' then
    redis.pcall('XGROUP', 'DESTROY', stream, group)
  elseif last then
    local info, place = redis.call('XINFO', 'STREAM', stream), target
    for field = 1, #info, 2 do
      -- Behind the latest event there is nothing yet, and what comes is not to be skipped.
      if info[field] == 'last-generated-id' and less(info[field + 1], place) then
        place = info[field + 1]
      end
    end
    for _, delivery in ipairs(pending) do
      redis.call('XACK', stream, group, delivery[1])
    end
    redis.call('XGROUP', 'SETID', stream, group, place)
  end
  redis.call('DEL', again)
  redis.call('SREM', prefix .. 'agains:' .. group, topic)
  for kind, fields in pairs(notes) do
    for _, field in ipairs(fields) do
      redis.call('HDEL', prefix .. kind .. group, field)
    end
  end
end

for at = 9, 8 + count do
  local pattern = ARGV[at]
  local since = redis.call('HGET', registry, pattern)
  if since and what == 'seek' then
    local clock = redis.call('GET', KEYS[1]) or '0-0'
    redis.call('HSET', registry, pattern, less(target, clock) and target or clock)
  elseif since then
    if what == 'rename' then
      redis.call('HSET', prefix .. 'group:' .. target, pattern, since)
      redis.call('SADD', prefix .. 'groups', target)
      local seen = redis.call('HGET', prefix .. 'seen:' .. group, pattern)
      if seen then
        redis.call('HSET', prefix .. 'seen:' .. target, pattern, seen)
      end
    end
    redis.call('HDEL', registry, pattern)
    redis.call('HDEL', prefix .. 'seen:' .. group, pattern)
    redis.call('DEL', prefix .. 'token:' .. group .. ' ' .. pattern, prefix .. 'members:' .. group .. ' ' .. pattern)
  end
end
if redis.call('EXISTS', registry) == 0 then
  redis.call('SREM', prefix .. 'groups', group)
end
if what == 'rename' then
  local mended = redis.call('HGETALL', prefix .. 'mended:' .. group)
  for at = 1, #mended, 2 do
    redis.call('HSET', prefix .. 'mended:' .. target, mended[at], mended[at + 1])
  end
  if whole then
    redis.call('DEL', prefix .. 'mended:' .. group)
    local dead, to = prefix .. 'dead:' .. group, prefix .. 'dead:' .. target
    if redis.call('EXISTS', dead) == 1 then
      if redis.call('EXISTS', to) == 0 then
        redis.call('RENAME', dead, to)
      else
        for _, entry in ipairs(redis.call('XRANGE', dead, '-', '+')) do
          redis.call('XADD', to, '*', unpack(entry[2]))
        end
        redis.call('DEL', dead)
      end
      redis.call('SREM', prefix .. 'dead', group)
      redis.call('SADD', prefix .. 'dead', target)
    end
  end
end
redis.call('SET', done, what, 'PX', keep)
return 1
