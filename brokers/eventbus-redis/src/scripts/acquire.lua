#!lua flags=allow-oom
-- Takes a group over, unless another process has it, or a pattern of it that overlaps.
--
-- ARGV: prefix, group, pattern, token, milliseconds of the lease, how many patterns overlap, these, then all other known
-- patterns of the group.
-- Answers: 'HELD', 'OTHER' with its token and the milliseconds until its lease ends, or 'CHANGED' where the group has
-- patterns by now that the caller knows nothing of.
local prefix, group, pattern, token, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local overlapping = tonumber(ARGV[6])
local known = { [pattern] = true }
for at = 7, #ARGV do
  known[ARGV[at]] = true
end
for _, other in ipairs(redis.call('HKEYS', prefix .. 'group:' .. group)) do
  if not known[other] then
    return { 'CHANGED' }
  end
end
local function key(kind, of)
  return prefix .. kind .. ':' .. group .. ' ' .. of
end
local function taken(of)
  local owner = redis.call('GET', key('lease', of))
  if owner and owner ~= token then
    return { 'OTHER', owner, redis.call('PTTL', key('lease', of)) }
  end
end
local other = taken(pattern)
for at = 7, 6 + overlapping do
  other = other or taken(ARGV[at])
end
if other then
  return other
end
redis.call('SET', key('lease', pattern), token, 'PX', lease)
redis.call('SET', key('token', pattern), token)
return { 'HELD' }
