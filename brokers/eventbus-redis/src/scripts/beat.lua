#!lua flags=allow-oom
-- Says that a process that competes with others still has its deliveries.
--
-- ARGV: prefix, group, pattern, consumer, milliseconds of its patience, then of each delivery: stream, id.
-- Answers the numbers, from 0, of the deliveries that are not its own any more.
local prefix, group, pattern, consumer = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local members = prefix .. 'members:' .. group .. ' ' .. pattern
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', members, string.format('%.0f', now + tonumber(ARGV[5])), consumer)
redis.call('HSET', prefix .. 'seen:' .. group, pattern, redis.call('GET', KEYS[1]) or '0-0')
redis.call('ZREMRANGEBYSCORE', members, '-inf', string.format('%.0f', now - 60000))
local lost, kept = {}, {}
for at = 6, #ARGV, 2 do
  local stream, id = ARGV[at], ARGV[at + 1]
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
  if pending.err or #pending == 0 then
    lost[#lost + 1] = (at - 6) / 2
  else
    kept[stream] = kept[stream] or {}
    table.insert(kept[stream], id)
  end
end
for stream, ids in pairs(kept) do
  -- The time that they have waited begins anew, and their counts stay.
  table.insert(ids, 'JUSTID')
  redis.call('XCLAIM', stream, group, consumer, 0, unpack(ids))
end
return lost
