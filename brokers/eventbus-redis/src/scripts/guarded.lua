#!lua flags=allow-oom
-- Runs commands, unless another process has the group: in place of a transaction, which takes no command while the server
-- has no memory left.
--
-- ARGV: prefix, group, pattern, token, then of each command how many words it has, and these.
-- Answers 0 where another process has the group, or what they have answered.
if redis.call('GET', ARGV[1] .. 'token:' .. ARGV[2] .. ' ' .. ARGV[3]) ~= ARGV[4] then
  return 0
end
local answers, at = {}, 5
while at <= #ARGV do
  local last = at + tonumber(ARGV[at])
  answers[#answers + 1] = redis.call(unpack(ARGV, at + 1, last))
  at = last + 1
end
return answers
