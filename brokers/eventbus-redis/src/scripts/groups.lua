-- What the server knows of groups, at one moment.
--
-- ARGV: prefix.
-- Answers two lists. Of each group: name, patterns (each followed by 1 where a process handles it), how many dead letters,
-- names of parked deliveries, topics with dead letters that go again (each followed by how many). Of each topic: name, and of
-- each group that reads it: name, last delivered, how many are pending, how many follow (-1: not known), the first that
-- is pending, the first that follows.
local prefix = ARGV[1]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local groups, topics = {}, {}
for _, group in ipairs(redis.call('SMEMBERS', prefix .. 'groups')) do
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
    redis.call('HKEYS', prefix .. 'parked:' .. group),
    agains,
  }
end
for _, topic in ipairs(redis.call('SMEMBERS', prefix .. 'topics')) do
  local stream, readers = prefix .. 'topic:' .. topic, {}
  local known = redis.pcall('XINFO', 'GROUPS', stream)
  if not known.err then
    for _, reader in ipairs(known) do
      local facts = {}
      for at = 1, #reader, 2 do
        facts[reader[at]] = reader[at + 1]
      end
      local name, last, pending = facts['name'], facts['last-delivered-id'], facts['pending']
      local first = ''
      if pending > 0 then
        first = redis.call('XPENDING', stream, name, '-', '+', 1)[1][1]
      end
      local follows = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)
      local lag = facts['lag'] or -1
      if #follows == 0 then
        lag = 0
      end
      for _, fact in ipairs({ name, last, pending, lag, first, #follows > 0 and follows[1][1] or '' }) do
        readers[#readers + 1] = fact
      end
    end
  end
  topics[#topics + 1] = { topic, readers }
end
return { groups, topics }
