#!lua flags=allow-oom
-- Notes that a delivery waits for another attempt.
--
-- ARGV: prefix, group, pattern, token (empty where processes compete), consumer, stream, id, field, value.
-- Answers 1, or 0 where another process has it.
local prefix, group, pattern, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if token ~= '' and redis.call('GET', prefix .. 'token:' .. group .. ' ' .. pattern) ~= token then
  return 0
end
local pending = redis.call('XPENDING', ARGV[6], group, ARGV[7], ARGV[7], 1)
if #pending == 0 or pending[1][2] ~= ARGV[5] then
  return 0
end
redis.call('HSET', prefix .. 'parked:' .. group, ARGV[8], ARGV[9])
redis.call('HDEL', prefix .. 'suspects:' .. group, ARGV[8])
return 1
