-- The id of the latest event, of whatever topic. ARGV: prefix.
local latest, millis, number = '0-0', 0, 0
for _, topic in ipairs(redis.call('SMEMBERS', ARGV[1] .. 'topics')) do
  local entries = redis.pcall('XREVRANGE', ARGV[1] .. 'topic:' .. topic, '+', '-', 'COUNT', 1)
  if not entries.err and #entries > 0 then
    local first, second = string.match(entries[1][1], '^(%d+)-(%d+)$')
    first, second = tonumber(first), tonumber(second)
    if first > millis or (first == millis and second > number) then
      latest, millis, number = entries[1][1], first, second
    end
  end
end
return latest
