-- Counts entries of a stream, some at a time.
--
-- ARGV: prefix, stream, from, to, how many at most. Answers the number, and the id of the last one.
local entries = redis.call('XRANGE', ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
return { #entries, #entries > 0 and entries[#entries][1] or '' }
