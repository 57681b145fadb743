-- The patterns of a group, each followed by 1 where a process handles it there. ARGV: prefix, group.
local prefix, group = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local answer = {}
for _, pattern in ipairs(redis.call('HKEYS', prefix .. 'group:' .. group)) do
  local of = group .. ' ' .. pattern
  local active = redis.call('EXISTS', prefix .. 'lease:' .. of) == 1
    or redis.call('ZCOUNT', prefix .. 'members:' .. of, now, '+inf') > 0
  answer[#answer + 1] = pattern
  answer[#answer + 1] = active and 1 or 0
end
return answer
