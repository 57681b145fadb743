-- Delivers a dead letter again, to its group only, and removes it, both or neither.
--
-- ARGV: prefix, token of the call, milliseconds for which it is remembered, group, id, '1' where a payload follows, the
-- payload.
-- Answers 1, 0 where there is no such dead letter, or 'PENDING' where the group has the event at hand.
local prefix, done, keep = ARGV[1], ARGV[1] .. 'done:' .. ARGV[2], ARGV[3]
local group, id, payload = ARGV[4], ARGV[5], ARGV[6] == '1' and ARGV[7]
-- Its answer was lost with a connection.
if redis.call('EXISTS', done) == 1 then
  return 1
end
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
    if name == 'data' and payload then
      value = payload
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
if payload then
  redis.call('HSET', prefix .. 'mended:' .. group, topic .. '/' .. origin, payload)
end
redis.call('XDEL', dead, id)
redis.call('XADD', prefix .. 'news', 'MAXLEN', '~', '1000', '*', 'again', group)
redis.call('SET', done, id, 'PX', keep)
return 1
