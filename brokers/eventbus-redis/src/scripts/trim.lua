-- Removes the oldest events of a topic that are no longer kept, behind what every group has settled.
--
-- ARGV: prefix, topic, milliseconds that events are kept (empty: for ever), how many (empty: all), '1' where groups that
-- have not settled them lose them, then of each group that listens on the topic: its name, the place where it began.
-- Answers how many were removed.
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
-- Entries before this place may go.
local upto = '0-0'
if age ~= '' then
  local time = redis.call('TIME')
  local cut = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(age)
  if cut > 0 then
    upto = string.format('%.0f-0', cut)
  end
end
if most ~= '' and length > tonumber(most) then
  -- No more than so many in one step, since the server does nothing else meanwhile; the next one goes on.
  local many = math.min(length - tonumber(most), 10000)
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', many + 1)
  local first = oldest[many + 1]
  if first and less(upto, first[1]) then
    upto = first[1]
  elseif not first then
    local millis, number = parts(oldest[#oldest][1])
    upto = string.format('%.0f-%.0f', millis, number + 1)
  end
end
if not unhandled then
  local begun = {}
  for _, reader in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local facts = {}
    for at = 1, #reader, 2 do
      facts[reader[at]] = reader[at + 1]
    end
    begun[facts['name']] = true
    local settled = facts['last-delivered-id']
    local millis, number = parts(settled)
    settled = string.format('%.0f-%.0f', millis, number + 1)
    if facts['pending'] > 0 then
      settled = redis.call('XPENDING', stream, facts['name'])[2]
    end
    if less(settled, upto) then
      upto = settled
    end
  end
  -- Groups that have not read the topic yet, since none of their processes has run since it is there.
  for at = 6, #ARGV, 2 do
    if not begun[ARGV[at]] and less(ARGV[at + 1], upto) then
      local millis, number = parts(ARGV[at + 1])
      upto = string.format('%.0f-%.0f', millis, number + 1)
    end
  end
end
if upto == '0-0' then
  return 0
end
return redis.call('XTRIM', stream, 'MINID', '=', upto)
