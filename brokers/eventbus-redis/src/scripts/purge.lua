-- Removes a dead letter.
--
-- ARGV: prefix, token of the call, milliseconds for which it is remembered, group, id.
-- Answers 1, or 0 where there is no such dead letter.
local prefix, done, keep = ARGV[1], ARGV[1] .. 'done:' .. ARGV[2], ARGV[3]
-- Its answer was lost with a connection.
if redis.call('EXISTS', done) == 1 then
  return 1
end
local removed = redis.call('XDEL', prefix .. 'dead:' .. ARGV[4], ARGV[5])
if removed == 1 then
  redis.call('SET', done, ARGV[5], 'PX', keep)
end
return removed
