#!lua flags=allow-oom
-- Lists what competing processes have let lie that are gone: those whose patience is at an end, or that have left.
--
-- ARGV: prefix, group, pattern, own consumer, milliseconds for which a delivery has waited, how many at most, then the
-- streams.
-- Answers of each delivery: number of its stream, from 0, id, consumer.
local prefix, group, pattern, own = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local most = tonumber(ARGV[6])
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local is_there = { [own] = true }
for _, member in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'members:' .. group .. ' ' .. pattern, now, '+inf')) do
  is_there[member] = true
end
local strays = {}
for at = 7, #ARGV do
  local from = '-'
  while #strays < 3 * most do
    local pending = redis.call('XPENDING', ARGV[at], group, 'IDLE', ARGV[5], from, '+', 500)
    for _, delivery in ipairs(pending) do
      if not is_there[delivery[2]] and #strays < 3 * most then
        strays[#strays + 1] = at - 7
        strays[#strays + 1] = delivery[1]
        strays[#strays + 1] = delivery[2]
      end
    end
    if #pending < 500 then
      break
    end
    from = '(' .. pending[#pending][1]
  end
end
return strays
