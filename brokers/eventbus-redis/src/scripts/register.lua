#!lua flags=allow-oom
-- Makes a group known on a pattern, and begins it on each stream where it has not begun.
--
-- ARGV: prefix, group, pattern, '$' (from now on) or '0-0' (from the first event), 'create', 'check' or
-- 'known' (where it is not new), '1' where the
-- pattern is a topic, how many topics, the topics, how many other patterns of the group overlap, these, each followed by '1'
-- where the pattern covers all of its topics, then for each topic that is to be begun anew, it and the place.
-- Answers: whether the group is new here, how many events it skips, then of each stream: topic, place of the last
-- delivered entry, error (or an empty text).
local prefix, group, pattern, start, mode, exact = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1'
local count = tonumber(ARGV[7])
local registry = prefix .. 'group:' .. group
local since = redis.call('HGET', registry, pattern)
local new = not since
if new and mode ~= 'create' then
  return { 'UNKNOWN' }
end
local overlapping = tonumber(ARGV[8 + count])
local resume = {}
for at = 9 + count + 2 * overlapping, #ARGV, 2 do
  resume[ARGV[at]] = ARGV[at + 1]
end
if new then
  since = '0-0'
  if start == '$' then
    since = redis.call('GET', KEYS[1]) or '0-0'
  end
  -- It takes the place of earlier patterns, and goes on where the first of them was seen last.
  local function less(one, other)
    local a, b = string.match(one, '^(%d+)-(%d+)$')
    local c, d = string.match(other, '^(%d+)-(%d+)$')
    a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
    return a < c or (a == c and b < d)
  end
  for at = 9 + count, 8 + count + 2 * overlapping, 2 do
    local seen = redis.call('HGET', prefix .. 'seen:' .. group, ARGV[at]) or redis.call('HGET', registry, ARGV[at])
    if seen and (start ~= '' or less(seen, since)) then
      since, start = seen, ''
    end
  end
  for at = 9 + count, 8 + count + 2 * overlapping, 2 do
    local of = group .. ' ' .. ARGV[at]
    local handled = redis.call('EXISTS', prefix .. 'lease:' .. of) == 1 or redis.call('EXISTS', prefix .. 'members:' .. of) == 1
    if ARGV[at + 1] == '1' and not handled then
      redis.call('HDEL', registry, ARGV[at])
      redis.call('HDEL', prefix .. 'seen:' .. group, ARGV[at])
      redis.call('DEL', prefix .. 'token:' .. of)
    end
  end
  redis.call('HSET', registry, pattern, since)
  redis.call('SADD', prefix .. 'groups', group)
end
if exact and mode ~= 'check' and redis.call('SADD', prefix .. 'topics', pattern) == 1 then
  redis.call('XADD', prefix .. 'news', 'MAXLEN', '~', '1000', '*', 'topic', pattern)
end
local answer, skipped = { new and 1 or 0, 0 }, 0
for at = 8, 7 + count do
  local topic = ARGV[at]
  local stream = prefix .. 'topic:' .. topic
  local from = since
  if resume[topic] then
    from = resume[topic]
  elseif new and start == '$' then
    from = '$'
  end
  local before = redis.pcall('XLEN', stream)
  local made
  if from == '$' and before ~= 0 and type(before) == 'number' then
    -- The server can tell how far the group has come only if it knows how many entries it skips.
    local info, added = redis.call('XINFO', 'STREAM', stream), 0
    for field = 1, #info, 2 do
      if info[field] == 'entries-added' then
        added = info[field + 1]
      end
    end
    made = redis.pcall('XGROUP', 'CREATE', stream, group, from, 'ENTRIESREAD', added)
  else
    made = redis.pcall('XGROUP', 'CREATE', stream, group, from, 'MKSTREAM')
  end
  local last, problem = '0-0', ''
  if type(made) == 'table' and made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    problem = made.err
  else
    if type(made) == 'table' and made.ok and from == '$' then
      skipped = skipped + before
    end
    for _, known in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      local facts = {}
      for field = 1, #known, 2 do
        facts[known[field]] = known[field + 1]
      end
      if facts['name'] == group then
        last = facts['last-delivered-id']
      end
    end
  end
  answer[#answer + 1] = topic
  answer[#answer + 1] = last
  answer[#answer + 1] = problem
end
answer[2] = skipped
return answer
