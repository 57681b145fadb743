-- The first events that groups have not finished, for some groups.
--
-- ARGV: prefix, then of each: stream, group, the last that was delivered to it.
-- Answers of each: the first that is pending, the first that follows (or empty texts).
local firsts, following = {}, {}
for at = 2, #ARGV, 3 do
  local stream, group, last = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1)
  -- Groups that keep up stand at the same place. An entry is copied to be looked at.
  local place = stream .. ' ' .. last
  if not following[place] then
    local entries = redis.pcall('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)
    following[place] = not entries.err and #entries > 0 and entries[1][1] or ''
  end
  firsts[#firsts + 1] = not pending.err and #pending > 0 and pending[1][1] or ''
  firsts[#firsts + 1] = following[place]
end
return firsts
