#!lua flags=allow-oom
-- Settles deliveries of a group, many at once.
--
-- ARGV: prefix, group, pattern, token (empty where processes compete), then of each stream: stream, '1' where its entries
-- are gone once they are settled, how many ids, these; at last the fields of parked deliveries, behind an empty text.
-- Answers 1, or 0 where another process has the group: then nothing has changed.
local prefix, group, pattern, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if token ~= '' and redis.call('GET', prefix .. 'token:' .. group .. ' ' .. pattern) ~= token then
  return 0
end
local at = 5
while at <= #ARGV and ARGV[at] ~= '' do
  local stream, gone, count = ARGV[at], ARGV[at + 1] == '1', tonumber(ARGV[at + 2])
  local last = at + 2 + count
  for first = at + 3, last, 1000 do
    local upto = math.min(first + 999, last)
    redis.call('XACK', stream, group, unpack(ARGV, first, upto))
    if gone then
      redis.call('XDEL', stream, unpack(ARGV, first, upto))
    end
  end
  at = last + 1
end
for first = at + 1, #ARGV, 1000 do
  redis.call('HDEL', prefix .. 'parked:' .. group, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
return 1
