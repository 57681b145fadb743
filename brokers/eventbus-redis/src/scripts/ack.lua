#!lua flags=allow-oom
-- Settles deliveries of a group, many at once.
--
-- ARGV: prefix, group, pattern, token (empty where processes compete), consumer, then of each stream: stream, what the
-- fields of its deliveries begin with, '1' where its entries are gone once they are settled, how many ids, these in their
-- order; one of which something is noted has a '+' before it.
-- Answers 1, or 0 where another process has the group: then nothing has changed. Where processes compete and others have
-- some of the deliveries, the numbers of these, from 0: they are not settled.
local prefix, group, pattern, token, consumer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local competing = token == ''
if not competing and redis.call('GET', prefix .. 'token:' .. group .. ' ' .. pattern) ~= token then
  return 0
end
local noted = { prefix .. 'parked:' .. group, prefix .. 'suspects:' .. group }
local lost, number, at = {}, 0, 6
while at <= #ARGV do
  local stream, field, gone, count = ARGV[at], ARGV[at + 1], ARGV[at + 2] == '1', tonumber(ARGV[at + 3])
  local ids, fields, ours = {}, {}, {}
  if competing then
    -- Most are found by one look, whatever else is open between the first and the last of them.
    local first, last = string.match(ARGV[at + 4], '[^+]+'), string.match(ARGV[at + 3 + count], '[^+]+')
    for _, pending in ipairs(redis.call('XPENDING', stream, group, first, last, 2 * count, consumer)) do
      ours[pending[1]] = true
    end
  end
  for place = at + 4, at + 3 + count do
    local id = ARGV[place]
    local is_noted = string.byte(id) == 43
    if is_noted then
      id = string.sub(id, 2)
    end
    -- What nobody has any more was settled already, as by an earlier try of this.
    if
      competing
      and not ours[id]
      and #redis.call('XPENDING', stream, group, id, id, 1, consumer) == 0
      and #redis.call('XPENDING', stream, group, id, id, 1) > 0
    then
      lost[#lost + 1] = number
    else
      ids[#ids + 1] = id
      if is_noted then
        fields[#fields + 1] = field .. id
      end
    end
    number = number + 1
  end
  for first = 1, #ids, 1000 do
    local last = math.min(first + 999, #ids)
    redis.call('XACK', stream, group, unpack(ids, first, last))
    if gone then
      redis.call('XDEL', stream, unpack(ids, first, last))
    end
  end
  for first = 1, #fields, 1000 do
    for _, key in ipairs(noted) do
      redis.call('HDEL', key, unpack(fields, first, math.min(first + 999, #fields)))
    end
  end
  at = at + 4 + count
end
return #lost > 0 and lost or 1
