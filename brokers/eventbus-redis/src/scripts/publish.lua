-- Stores events, each by itself, in the order of the arguments.
--
-- ARGV: prefix, milliseconds for which ids are kept (0: they are not), '1' where topics have to be there already, '1' where
-- it is waited for replicas, and of each event: topic, id and source, how many names and values, these.
-- Answers for each event: 0 stored, 1 known already, or the text of the error.
local prefix, keep, check, waits = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Ids rise over all topics, whatever the clock does, so that a pattern over several topics has one order.
local millis, number = string.match(redis.call('GET', KEYS[1]) or '0-0', '^(%d+)-(%d+)$')
millis, number = tonumber(millis or 0), tonumber(number or 0)
local function place()
  return string.format('%.0f-%.0f', millis, number)
end
local function advance()
  if now > millis then
    millis, number = now, 0
  else
    number = number + 1
  end
end
-- Somebody else has added to the stream, with an id of the server's.
local function behind(stream)
  local info = redis.call('XINFO', 'STREAM', stream)
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then
      local last, count = string.match(info[at + 1], '^(%d+)-(%d+)$')
      millis, number = tonumber(last), tonumber(count) + 1
    end
  end
end

local known = {}
local function index(topic)
  if known[topic] == nil then
    known[topic] = true
    local added
    if check then
      added = redis.pcall('SISMEMBER', prefix .. 'topics', topic)
      if added == 0 then
        known[topic] = 'UNKNOWN'
      end
    else
      added = redis.pcall('SADD', prefix .. 'topics', topic)
      if added == 1 then
        local told = redis.pcall('XADD', prefix .. 'news', 'MAXLEN', '~', '1000', '*', 'topic', topic)
        if type(told) == 'table' and told.err then
          added = told
        end
      end
    end
    if type(added) == 'table' and added.err then
      known[topic] = added.err
    end
  end
  return known[topic]
end

local answers, stored, at = {}, false, 5
while at <= #ARGV do
  local topic, id, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local first, last = at + 3, at + 2 + count
  at = last + 1
  local stream, once = prefix .. 'topic:' .. topic, prefix .. 'once:' .. id
  local answer = index(topic)
  if answer == true then
    answer = 0
    if keep ~= '0' then
      local earlier = redis.pcall('SET', once, topic, 'PX', keep, 'NX', 'GET')
      if type(earlier) == 'table' and earlier.err then
        answer = earlier.err
      elseif earlier == topic then
        answer = 1
      elseif earlier then
        answer = 'TAKEN ' .. earlier
      end
    end
  end
  if answer == 0 then
    advance()
    local added = redis.pcall('XADD', stream, place(), unpack(ARGV, first, last))
    if type(added) == 'table' and added.err and string.find(added.err, 'equal or smaller', 1, true) then
      behind(stream)
      added = redis.pcall('XADD', stream, place(), unpack(ARGV, first, last))
    end
    if type(added) == 'table' and added.err then
      answer = added.err
      if keep ~= '0' then
        redis.call('DEL', once)
      end
    else
      stored = true
    end
  end
  -- What is refused now, as for want of memory, may be here since it was sent for the first time.
  if type(answer) == 'string' and keep ~= '0' and redis.call('GET', once) == topic then
    answer = 1
  end
  answers[#answers + 1] = answer
  -- The server waits for what was written on a connection, and what is known already may have been on another one.
  stored = stored or (waits and answer == 1)
end
if stored then
  redis.call('SET', KEYS[1], place())
end
return answers
