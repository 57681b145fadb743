-- Counts entries of a stream, some at a time: what they hold is copied to be counted, so that no more is than some bytes.
--
-- ARGV: prefix, stream, from, to. Answers the number, and the id of the last one where more may follow.
local stream, from, to = ARGV[2], ARGV[3], ARGV[4]
local count, bytes, page, last = 0, 0, 4, ''
while count < 10000 and bytes < 8388608 do
  local entries = redis.call('XRANGE', stream, from, to, 'COUNT', page)
  local size = 0
  for _, entry in ipairs(entries) do
    for _, part in ipairs(entry[2]) do
      size = size + #part
    end
  end
  count, bytes = count + #entries, bytes + size
  if #entries < page then
    return { count, '' }
  end
  last = entries[#entries][1]
  from = '(' .. last
  -- As many as have a megabyte, if they are like these.
  page = math.max(1, math.min(4 * page, 1000, math.floor(1048576 * #entries / size)))
end
return { count, last }
