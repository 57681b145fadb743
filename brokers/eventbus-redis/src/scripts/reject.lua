-- Keeps a dead letter and settles its delivery, both or neither.
--
-- ARGV: prefix, group, pattern, token (empty where processes compete), consumer, stream, '1' where its entries are gone
-- once they are settled, id, field of the parked delivery, names and values of the dead letter.
-- Answers 1; 2 where the delivery was settled already, as by an earlier try of this; 0 where another process has it.
local prefix, group, pattern, token, consumer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local stream, id = ARGV[6], ARGV[8]
if token ~= '' and redis.call('GET', prefix .. 'token:' .. group .. ' ' .. pattern) ~= token then
  return 0
end
local pending = redis.call('XPENDING', stream, group, id, id, 1)
if #pending == 0 then
  return 2
end
if pending[1][2] ~= consumer then
  return 0
end
-- First what may be refused for want of memory: nothing has changed then.
redis.call('XADD', prefix .. 'dead:' .. group, '*', unpack(ARGV, 10, #ARGV))
redis.call('SADD', prefix .. 'dead', group)
redis.call('XACK', stream, group, id)
redis.call('HDEL', prefix .. 'parked:' .. group, ARGV[9])
redis.call('HDEL', prefix .. 'suspects:' .. group, ARGV[9])
if ARGV[7] == '1' then
  redis.call('XDEL', stream, id)
end
return 1
