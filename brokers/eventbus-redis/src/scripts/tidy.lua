#!lua flags=allow-oom
-- Removes consumers of processes that are gone and have nothing pending.
--
-- ARGV: prefix, group, pattern, own consumer, milliseconds after which a silent one is gone, then the streams.
local group, own, patience = ARGV[2], ARGV[4], tonumber(ARGV[5])
for at = 6, #ARGV do
  local stream = ARGV[at]
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
  if not consumers.err then
    for _, consumer in ipairs(consumers) do
      local facts = {}
      for field = 1, #consumer, 2 do
        facts[consumer[field]] = consumer[field + 1]
      end
      local silent = facts['idle'] >= patience
      local member = redis.call('ZSCORE', ARGV[1] .. 'members:' .. group .. ' ' .. ARGV[3], facts['name'])
      if facts['name'] ~= own and facts['pending'] == 0 and silent and not member then
        redis.call('XGROUP', 'DELCONSUMER', stream, group, facts['name'])
      end
    end
  end
end
return 1
