#!lua flags=allow-oom
-- Leaves a group to whoever comes next, at once.
--
-- ARGV: prefix, group, pattern, token (empty where processes compete), consumer, then the streams.
local prefix, group, pattern, token, consumer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local of = ':' .. group .. ' ' .. pattern
local ours = token == '' or redis.call('GET', prefix .. 'token' .. of) == token
for at = 6, #ARGV do
  local stream = ARGV[at]
  if ours then
    while true do
      local pending = redis.pcall('XPENDING', stream, group, '-', '+', 500, consumer)
      if pending.err or #pending == 0 then
        break
      end
      local ids = {}
      for _, delivery in ipairs(pending) do
        ids[#ids + 1] = delivery[1]
      end
      -- Whoever takes them over sees that nothing has ended this process. Where processes compete, they wait until a
      -- delivery has been idle for a while: this one has. What was removed meanwhile is not pending any more.
      for _, word in ipairs({ 'IDLE', '86400000', 'JUSTID' }) do
        ids[#ids + 1] = word
      end
      redis.call('XCLAIM', stream, group, 'left', 0, unpack(ids))
    end
  end
  local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1, consumer)
  -- To remove a consumer is to lose what is pending with it.
  if not pending.err and #pending == 0 then
    redis.pcall('XGROUP', 'DELCONSUMER', stream, group, consumer)
  end
end
if ours then
  redis.call('HSET', prefix .. 'seen:' .. group, pattern, redis.call('GET', KEYS[1]) or '0-0')
end
if token == '' then
  redis.call('ZREM', prefix .. 'members' .. of, consumer)
elseif ours and redis.call('GET', prefix .. 'lease' .. of) == token then
  redis.call('DEL', prefix .. 'lease' .. of)
end
redis.pcall('XADD', prefix .. 'news', 'MAXLEN', '~', '1000', '*', 'left', group)
return 1
