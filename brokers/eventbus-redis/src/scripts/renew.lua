#!lua flags=allow-oom
-- Renews a lease. ARGV: prefix, group, pattern, token, milliseconds. Answers 1, or 0 where another process took over.
local of = ':' .. ARGV[2] .. ' ' .. ARGV[3]
if redis.call('GET', ARGV[1] .. 'token' .. of) ~= ARGV[4] then
  return 0
end
-- A pattern that takes the place of this one goes on from here, on topics that this one does not cover.
redis.call('HSET', ARGV[1] .. 'seen:' .. ARGV[2], ARGV[3], redis.call('GET', KEYS[1]) or '0-0')
redis.call('SET', ARGV[1] .. 'lease' .. of, ARGV[4], 'PX', ARGV[5])
return 1
