-- Delivers a dead letter again, to its group only, and removes it, both or neither.
--
-- ARGV: prefix, group, id, '1' where a payload follows, the payload.
-- Answers 1, 0 where there is no such dead letter, or 'PENDING' where the group has the event at hand.
local prefix, group, id = ARGV[1], ARGV[2], ARGV[3]
local dead = prefix .. 'dead:' .. group
local found = redis.call('XRANGE', dead, id, id)
if #found == 0 then
  return 0
end
local known = 'eventbus-dead-letter-'
local fields, topic, origin = {}, nil, nil
local old = found[1][2]
for at = 1, #old, 2 do
  local name, value = old[at], old[at + 1]
  if name == known .. 'topic' then
    topic = value
  elseif name == known .. 'offset' then
    origin = value
  elseif string.sub(name, 1, #known) ~= known then
    if name == 'data' and ARGV[4] == '1' then
      value = ARGV[5]
    end
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
end
local pending = redis.pcall('XPENDING', prefix .. 'topic:' .. topic, group, origin, origin, 1)
if not pending.err and #pending > 0 then
  return 'PENDING'
end
fields[#fields + 1] = 'eventbus-origin'
fields[#fields + 1] = origin
local stream = prefix .. 'again:' .. group .. ':' .. topic
redis.pcall('XGROUP', 'CREATE', stream, group, '0-0', 'MKSTREAM')
redis.call('XADD', stream, '*', unpack(fields))
redis.call('SADD', prefix .. 'agains:' .. group, topic)
if ARGV[4] == '1' then
  redis.call('HSET', prefix .. 'mended:' .. group, topic .. '/' .. origin, ARGV[5])
end
redis.call('XDEL', dead, id)
redis.call('XADD', prefix .. 'news', 'MAXLEN', '~', '1000', '*', 'again', group)
return 1
