-- Removes the oldest events of a topic that are no longer kept, behind what every group has settled: some of them, since the
-- server does nothing else meanwhile.
--
-- ARGV: prefix, topic, milliseconds that events are kept (empty: for ever), how many (empty: all), '1' where groups that
-- have not settled them lose them, then of each group that listens on the topic: its name, the place where it began.
-- Answers how many were removed; there may be more where it is not 0.
local prefix, topic, age, most, unhandled = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1'
local stream = prefix .. 'topic:' .. topic
local length = redis.pcall('XLEN', stream)
if type(length) ~= 'number' or length == 0 then
  return 0
end
local function parts(id)
  local millis, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(millis), tonumber(number)
end
local function less(one, other)
  local a, b = parts(one)
  local c, d = parts(other)
  return a < c or (a == c and b < d)
end
local function behind(id)
  local millis, number = parts(id)
  return string.format('%.0f-%.0f', millis, number + 1)
end
local cut, surplus = nil, 0
if age ~= '' then
  local time = redis.call('TIME')
  local millis = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(age)
  cut = millis > 0 and string.format('%.0f-0', millis) or nil
end
if most ~= '' then
  surplus = length - tonumber(most)
end
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
if surplus <= 0 and not (cut and less(first, cut)) then
  return 0
end
-- Entries before this place are settled.
local settled = behind(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1][1])
if not unhandled then
  local begun = {}
  for _, reader in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local facts = {}
    for at = 1, #reader, 2 do
      facts[reader[at]] = reader[at + 1]
    end
    begun[facts['name']] = true
    local upto = behind(facts['last-delivered-id'])
    if facts['pending'] > 0 then
      upto = redis.call('XPENDING', stream, facts['name'])[2]
    end
    if less(upto, settled) then
      settled = upto
    end
  end
  -- Groups that have not read the topic yet, since none of their processes has run since it is there.
  for at = 6, #ARGV, 2 do
    if not begun[ARGV[at]] and less(ARGV[at + 1], settled) then
      settled = behind(ARGV[at + 1])
    end
  end
end
-- Removes the oldest entries before a place, so many at most. Whole nodes of the stream go without a look at what is in them;
-- what is left of them are the first entries of one node, which is small.
local function remove(upto, limit)
  limit = math.min(limit, 10000)
  local removed = redis.call('XTRIM', stream, 'MINID', '~', upto, 'LIMIT', limit)
  local left = math.min(limit - removed, 100)
  if left > 0 then
    local oldest = redis.call('XRANGE', stream, '-', '(' .. upto, 'COUNT', left + 1)
    local bound = #oldest > left and oldest[#oldest][1] or upto
    removed = removed + redis.call('XTRIM', stream, 'MINID', '=', bound)
  end
  return removed
end
local removed = 0
if surplus > 0 then
  removed = remove(settled, surplus)
end
if cut and removed < 10000 then
  removed = removed + remove(less(cut, settled) and cut or settled, 10000)
end
return removed
