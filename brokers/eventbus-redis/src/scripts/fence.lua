#!lua flags=allow-oom
-- Writes the token of a group anew, unless another process has it: what watches it is not run any more.
--
-- ARGV: prefix, group, pattern, token. Answers 1, or 0 where another process has the group.
local key = ARGV[1] .. 'token:' .. ARGV[2] .. ' ' .. ARGV[3]
if redis.call('GET', key) ~= ARGV[4] then
  return 0
end
redis.call('SET', key, ARGV[4])
return 1
