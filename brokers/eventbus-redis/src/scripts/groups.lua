-- What the server knows of some groups.
--
-- ARGV: prefix, then the groups: few, since the server does nothing else meanwhile.
-- Answers of each: name, patterns (each followed by 1 where a process handles it), how many dead letters, how many parked
-- deliveries, topics with dead letters that go again (each followed by how many).
local prefix = ARGV[1]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local groups = {}
for at = 2, #ARGV do
  local group = ARGV[at]
  local patterns, agains = {}, {}
  for _, pattern in ipairs(redis.call('HKEYS', prefix .. 'group:' .. group)) do
    local of = group .. ' ' .. pattern
    local active = redis.call('EXISTS', prefix .. 'lease:' .. of) == 1
      or redis.call('ZCOUNT', prefix .. 'members:' .. of, now, '+inf') > 0
    patterns[#patterns + 1] = pattern
    patterns[#patterns + 1] = active and 1 or 0
  end
  for _, topic in ipairs(redis.call('SMEMBERS', prefix .. 'agains:' .. group)) do
    agains[#agains + 1] = topic
    agains[#agains + 1] = redis.call('XLEN', prefix .. 'again:' .. group .. ':' .. topic)
  end
  groups[#groups + 1] = {
    group,
    patterns,
    redis.call('XLEN', prefix .. 'dead:' .. group),
    redis.call('HLEN', prefix .. 'parked:' .. group),
    agains,
  }
end
return groups
